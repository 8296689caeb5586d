// Drawing tokens with AVX2.
#include "draw_row.h"
