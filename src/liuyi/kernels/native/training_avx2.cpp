// Training kernels with AVX2 and FMA.
#include "training_kernels.h"
