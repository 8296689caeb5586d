// Linear layers with AVX512 and the matrix unit (AMX).
#include "linear_multiply.h"
