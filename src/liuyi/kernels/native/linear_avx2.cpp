// Linear layers with AVX2 and FMA.
#include "linear_multiply.h"
