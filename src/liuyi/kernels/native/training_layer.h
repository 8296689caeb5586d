// A layer of the decoder, forward and backward, as one call each: the kernels of training.h, product.h and flash.h one after
// the other, with nothing of Python or PyTorch between them. Needs AMX.
//
// Residual stream and norms are float32, all else bfloat16. `rows` are batch · seq.
#pragma once

#include <cstdint>

#include "team.h"

namespace liuyi {

struct LayerShape {
    int32_t batch, seq, hidden, intermediate, heads, kv_heads, head_dim, window;  // window 0: none
    int64_t angle_rows;                                                           // angles are repeated over the rows
    float attention_eps, mlp_eps;
};

struct LayerInputs {
    const float* x;                        // [rows, hidden]
    const float *cosines, *sines;          // [angle_rows, head_dim / 2]
    const int64_t* starts;                 // as in flash.h
    const float* attention_norm;           // [hidden]
    const uint16_t *qkv, *output;          // [(heads + 2 · kv_heads) · head_dim, hidden], [hidden, heads · head_dim]
    const float* mlp_norm;                 // [hidden]
    const uint16_t *gate_up, *down;        // [2 · intermediate, hidden], [hidden, intermediate]
};

// Of x and of the weights, shaped as these.
struct LayerGradients {
    float *x, *attention_norm;
    uint16_t *qkv, *output;
    float* mlp_norm;
    uint16_t *gate_up, *down;
};

// What the backward pass needs of the forward one, and what each needs meanwhile.
struct LayerBytes {
    int64_t kept, forward, backward;
};
LayerBytes layer_bytes(const LayerShape&);

// out [rows, hidden]
void layer_forward(const Team&, const LayerShape&, const LayerInputs&, void* kept, void* scratch, float* out);
void layer_backward(const Team&, const LayerShape&, const LayerInputs&, void* kept, const float* grad, void* scratch,
                    const LayerGradients&);

}  // namespace liuyi
