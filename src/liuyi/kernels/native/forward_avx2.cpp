// The forward pass for AVX2 and FMA (compiled with -mavx2 -mfma).
#include "forward.h"
