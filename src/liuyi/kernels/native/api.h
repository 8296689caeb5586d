// The C interface: what `kernels/library.py` calls.
//
// Functions that can fail return 0, or −1 with the reason in `liuyi_error()` (of the calling thread). Nothing throws
// or aborts. A model may be used by one thread at a time, in the process that made it: its threads do not survive a fork.
#pragma once

#include <stdint.h>

#include "draw.h"
#include "linear.h"
#include "plan.h"

#define LIUYI_API extern "C" __attribute__((visibility("default")))

namespace liuyi {

// Raised when anything below changes; library.py refuses another number.
constexpr int kInterface = 10;

struct ModelArguments {
    int32_t vocab, hidden, intermediate, layers, heads, kv_heads, head_dim;
    float norm_eps;
    int32_t kv_format, blocks, threads;
    const int32_t* windows;  // [layers], 0 for no window
};

}  // namespace liuyi

LIUYI_API int liuyi_interface();
LIUYI_API const char* liuyi_error();
// The best instruction set that the library was compiled for: avx2, avx512 or amx.
LIUYI_API const char* liuyi_compiled();
// The best one of those that this processor has too, up to `most`; or none.
LIUYI_API const char* liuyi_instruction_set(const char* most);
LIUYI_API void* liuyi_model_new(const liuyi::ModelArguments* arguments, const char* instruction_set);
LIUYI_API void liuyi_model_free(void* model);
LIUYI_API int liuyi_model_pack(void* model, int which, int layer, int format, const liuyi::Source* sources, int count);
LIUYI_API int liuyi_model_set_vector(void* model, int which, int layer, const float* values, int count);
LIUYI_API int liuyi_model_set_embedding(void* model, int format, const void* values);
LIUYI_API int liuyi_model_set_adapter(void* model, int slot, int layer, int projection, int rank, const float* down,
                                      const float* up);
LIUYI_API int liuyi_model_drop_adapter(void* model, int slot);
LIUYI_API int liuyi_model_forward(void* model, const liuyi::BatchView* batch, int output, void* result);
LIUYI_API int liuyi_model_draw(void* model, const liuyi::Draw* rows, int count, int32_t* tokens);
LIUYI_API int liuyi_model_score(void* model, const liuyi::Score* rows, int count);
LIUYI_API int64_t liuyi_model_block_bytes(void* model);   // or −1
LIUYI_API int64_t liuyi_model_weight_bytes(void* model);  // or −1
