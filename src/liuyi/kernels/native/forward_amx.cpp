// The forward pass with the matrix unit (AMX).
#include "forward.h"
