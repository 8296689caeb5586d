// Causal attention on the matrix unit (AMX), forward and backward, for packed rows.
//
// After FlashAttention (Dao 2023, arXiv 2307.08691): scores are made block by block and never kept; the gradient makes
// them again from the logarithm of each row's sum. Products are bfloat16 with float32 sums; scores and what is made of
// them stay float32 until they are multiplied again.
#pragma once

#include <cstdint>

#include "team.h"

namespace liuyi {

struct FlashShape {
    int32_t batch, seq, heads, kv_heads, head_dim, window;  // window 0: none; head_dim a multiple of 32
    float scale;
    int64_t q_stride, kv_stride;  // from a token to the next, of q, and of k and v; of their gradients too
};

// q, out [batch, seq, heads, head_dim]; k, v [batch, seq, kv_heads, head_dim]; starts [batch, seq], the first key that a
// query sees, growing along a row, or null for 0; lse [batch, heads, seq]. Tokens of out and grad lie side by side.
void flash_forward(const Team&, const FlashShape&, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                   const int64_t* starts, uint16_t* out, float* lse);
void flash_backward(const Team&, const FlashShape&, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                    const int64_t* starts, const uint16_t* out, const float* lse, const uint16_t* grad, uint16_t* grad_q,
                    uint16_t* grad_k, uint16_t* grad_v);

}  // namespace liuyi
