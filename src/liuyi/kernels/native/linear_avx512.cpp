// Linear layers with AVX512 (f, bw, vl, dq, vnni, bf16).
#include "linear_multiply.h"
