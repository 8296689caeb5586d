// What lies between the matrix products of a training step, each in one pass over memory.
//
// Activations are bfloat16, the residual stream and everything that is summed float32. Widths of rows and numbers of
// elements are multiples of 16; arrays do not overlap unless said.
#pragma once

#include <cstdint>

#include "team.h"

namespace liuyi {

struct AdamW {
    double beta1, beta2;
    float lr, eps, decay, grad_scale;  // decay: the part of the weight that a step takes away
};

// A gradient is either `grad` or, where that is null, `rounded`.
struct Gradient {
    const float* grad;
    const uint16_t* rounded;
    int64_t count;
};

// A weight and its state; copy: the new weight as bfloat16, or null.
struct AdamWTensor {
    AdamW settings;
    Gradient gradient;
    float *weight, *first, *second;
    float* step;  // how many were taken
    uint16_t* copy;
};

// Sums of the 64-bit words of weights and moments, and of the bits of counts, modulo 2⁶⁴.
struct Sums {
    uint64_t before, after;
};

#define LIUYI_TRAINING_KERNELS                                                                                          \
    /* sum = x + delta where there is a delta; out = sum · scale · weight, scale [rows] = 1 / rms(sum) */               \
    void norm(const Team&, const float* x, const uint16_t* delta, const float* weight, float eps, int64_t rows,         \
              int size, float* sum, uint16_t* out, float* scale);                                                       \
    /* Of the norm of x, or of x + delta: grad_x = stream (what the sum got from elsewhere, or null) + the norm's own;  \
       the same as bfloat16 in grad_delta where that is wanted, and what the norm gave in out, which may lie where grad \
       does; partials [ceil(rows / 64), size] is scratch */                                                             \
    void norm_backward(const Team&, const uint16_t* grad, const float* stream, const float* x, const uint16_t* delta,   \
                       const float* scale, const float* weight, int64_t rows, int size, float* partials, float* grad_x, \
                       uint16_t* grad_delta, float* grad_weight, uint16_t* out);                                        \
    /* out = x + delta */                                                                                               \
    void add(const Team&, const float* x, const uint16_t* delta, int64_t count, float* out);                            \
    /* out = x as bfloat16 */                                                                                           \
    void narrow(const Team&, const float* x, int64_t count, uint16_t* out);                                             \
    /* gate and up [rows, width], `stride` from row to row; out [rows, width] side by side */                           \
    void swiglu_rows(const Team&, const uint16_t* gate, const uint16_t* up, int64_t rows, int width, int64_t stride,     \
                     uint16_t* out);                                                                                    \
    /* grad [rows, width]; gradients lie as gate and up do; activated [rows, width] is what came out, or null;       \
       it may be grad */                                                                                                \
    void swiglu_backward(const Team&, const uint16_t* gate, const uint16_t* up, const uint16_t* grad, int64_t rows,      \
                         int width, int64_t stride, uint16_t* grad_gate, uint16_t* grad_up, uint16_t* activated);       \
    /* x [rows, heads, 2 · half], rows `stride` apart, those of out too, which may be x; angles [angle_rows, half]      \
       repeated over the rows; sign −1 turns back */                                                                    \
    void turn(const Team&, const uint16_t* x, const float* cosines, const float* sines, int64_t rows, int heads,        \
              int half, int64_t stride, int64_t angle_rows, float sign, uint16_t* out);                                 \
    /* losses [rows] in nats, each times its weight; logits [rows, vocab] become their gradient */                      \
    void cross_entropy(const Team&, uint16_t* logits, const int64_t* targets, const float* weights, int64_t rows,       \
                       int vocab, float* losses);                                                                       \
    /* one step of each */                                                                                             \
    Sums adamw(const Team&, const AdamWTensor* tensors, int count);                                                     \
    /* the sum of all squares of gradients */                                                                           \
    double squares(const Team&, const Gradient* gradients, int count);

namespace avx2 {
LIUYI_TRAINING_KERNELS
}
namespace avx512 {
LIUYI_TRAINING_KERNELS
}

}  // namespace liuyi
