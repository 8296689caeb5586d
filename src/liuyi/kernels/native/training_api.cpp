// Training kernels through the C interface: what `kernels/training.py` calls.

#include <new>

#include "api.h"
#include "cpu.h"
#include "flash.h"
#include "product.h"
#include "training.h"
#include "training_layer.h"

using namespace liuyi;

namespace {

Parallel borrowed = nullptr;
InstructionSet chosen = InstructionSet::none;

// 0, or -1 where there is no memory for what a kernel keeps meanwhile.
template <class Body>
int with_memory(const Body& body) {
    try {
        body();
        return 0;
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

}  // namespace

// `parallel` is GOMP_parallel of the OpenMP library that PyTorch runs on; `set` is an InstructionSet.
LIUYI_API void liuyi_training_open(Parallel parallel, int set) {
    borrowed = parallel;
    chosen = static_cast<InstructionSet>(set);
}

LIUYI_API void liuyi_training_norm(int threads, const float* x, const uint16_t* delta, const float* weight, float eps,
                                   int64_t rows, int size, float* sum, uint16_t* out, float* scale) {
    LIUYI_VECTORS_FOR(chosen, norm)({borrowed, threads}, x, delta, weight, eps, rows, size, sum, out, scale);
}

LIUYI_API void liuyi_training_norm_backward(int threads, const uint16_t* grad, const float* stream, const float* x,
                                            const float* scale, const float* weight, int64_t rows, int size,
                                            float* partials, float* grad_x, uint16_t* grad_delta, float* grad_weight) {
    LIUYI_VECTORS_FOR(chosen, norm_backward)({borrowed, threads}, grad, stream, x, nullptr, scale, weight, rows, size, partials,
                                             grad_x, grad_delta, grad_weight, nullptr);
}

LIUYI_API void liuyi_training_add(int threads, const float* x, const uint16_t* delta, int64_t count, float* out) {
    LIUYI_VECTORS_FOR(chosen, add)({borrowed, threads}, x, delta, count, out);
}

LIUYI_API void liuyi_training_swiglu(int threads, const uint16_t* gate, const uint16_t* up, int64_t rows, int width,
                                     int64_t stride, uint16_t* out) {
    LIUYI_VECTORS_FOR(chosen, swiglu_rows)({borrowed, threads}, gate, up, rows, width, stride, out);
}

LIUYI_API void liuyi_training_swiglu_backward(int threads, const uint16_t* gate, const uint16_t* up, const uint16_t* grad,
                                              int64_t rows, int width, int64_t stride, uint16_t* grad_gate,
                                              uint16_t* grad_up, uint16_t* activated) {
    LIUYI_VECTORS_FOR(chosen, swiglu_backward)({borrowed, threads}, gate, up, grad, rows, width, stride, grad_gate, grad_up,
                                               activated);
}

LIUYI_API void liuyi_training_turn(int threads, const uint16_t* x, const float* cosines, const float* sines, int64_t rows,
                                   int heads, int half, int64_t angle_rows, float sign, uint16_t* out) {
    const int64_t stride = static_cast<int64_t>(heads) * 2 * half;
    LIUYI_VECTORS_FOR(chosen, turn)({borrowed, threads}, x, cosines, sines, rows, heads, half, stride, angle_rows, sign, out);
}

LIUYI_API void liuyi_training_cross_entropy(int threads, uint16_t* logits, const int64_t* targets, const float* weights,
                                            int64_t rows, int vocab, float* losses) {
    LIUYI_VECTORS_FOR(chosen, cross_entropy)({borrowed, threads}, logits, targets, weights, rows, vocab, losses);
}

LIUYI_API int liuyi_training_squares(int threads, const Gradient* gradients, int count, double* sum) {
    return with_memory([&] { *sum = LIUYI_VECTORS_FOR(chosen, squares)({borrowed, threads}, gradients, count); });
}

LIUYI_API int liuyi_training_adamw(int threads, const AdamWTensor* tensors, int count, Sums* sums) {
    return with_memory([&] { *sums = LIUYI_VECTORS_FOR(chosen, adamw)({borrowed, threads}, tensors, count); });
}

#ifdef LIUYI_AMX
LIUYI_API int liuyi_training_product(int threads, const uint16_t* left, int64_t left_stride, int left_across,
                                     const uint16_t* right, int64_t right_stride, int right_across, int rows, int columns,
                                     int inner, uint16_t* out, int64_t out_stride) {
    return with_memory([&] {
        product({borrowed, threads}, {left, left_stride, left_across != 0}, {right, right_stride, right_across != 0}, rows,
                columns, inner, out, out_stride);
    });
}

LIUYI_API int liuyi_training_attention(int threads, const FlashShape* shape, const uint16_t* q, const uint16_t* k,
                                       const uint16_t* v, const int64_t* starts, uint16_t* out, float* lse) {
    return with_memory([&] { flash_forward({borrowed, threads}, *shape, q, k, v, starts, out, lse); });
}

LIUYI_API int liuyi_training_attention_backward(int threads, const FlashShape* shape, const uint16_t* q, const uint16_t* k,
                                                const uint16_t* v, const int64_t* starts, const uint16_t* out,
                                                const float* lse, const uint16_t* grad, uint16_t* grad_q,
                                                uint16_t* grad_k, uint16_t* grad_v) {
    return with_memory([&] {
        flash_backward({borrowed, threads}, *shape, q, k, v, starts, out, lse, grad, grad_q, grad_k, grad_v);
    });
}

LIUYI_API void liuyi_training_layer_bytes(const LayerShape* shape, LayerBytes* bytes) { *bytes = layer_bytes(*shape); }

LIUYI_API int liuyi_training_layer(int threads, const LayerShape* shape, const LayerInputs* inputs, void* kept, void* scratch,
                                   float* out) {
    return with_memory([&] { layer_forward({borrowed, threads}, *shape, *inputs, kept, scratch, out); });
}

LIUYI_API int liuyi_training_layer_backward(int threads, const LayerShape* shape, const LayerInputs* inputs, void* kept,
                                            const float* grad, void* scratch, const LayerGradients* grads) {
    return with_memory([&] { layer_backward({borrowed, threads}, *shape, *inputs, kept, grad, scratch, *grads); });
}
#endif
