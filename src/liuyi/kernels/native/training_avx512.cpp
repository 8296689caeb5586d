// Training kernels with AVX512 (f, bw, vl, dq, vnni, bf16).
#include "training_kernels.h"
