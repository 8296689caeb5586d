// Drawing tokens with AVX512.
#include "draw_row.h"
