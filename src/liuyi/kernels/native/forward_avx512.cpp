// The forward pass for AVX512 with VNNI and BF16.
#include "forward.h"
