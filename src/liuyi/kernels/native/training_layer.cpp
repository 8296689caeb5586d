// training_layer.h

#ifdef LIUYI_AMX
#include "training_layer.h"

#include <algorithm>
#include <cmath>

#include "flash.h"
#include "product.h"
#include "training.h"

namespace liuyi {

using namespace avx512;

namespace {

// Hands out pieces of some memory, each on lines of the cache of its own; without memory it only counts.
class Pieces {
  public:
    explicit Pieces(void* memory) : begin_(reinterpret_cast<uintptr_t>(memory)) {}

    template <class T>
    T* take(int64_t count) {
        T* piece = reinterpret_cast<T*>(begin_ + bytes_);
        bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return piece;
    }
    int64_t bytes() const { return bytes_; }

  private:
    const uintptr_t begin_;
    int64_t bytes_ = 0;
};

struct Sizes {
    explicit Sizes(const LayerShape& s)
        : rows(static_cast<int64_t>(s.batch) * s.seq), mixed(s.heads * s.head_dim), kv(s.kv_heads * s.head_dim),
          qkv(mixed + 2 * kv), gate_up(2 * s.intermediate), hidden(s.hidden), intermediate(s.intermediate) {}
    int64_t rows;
    int mixed, kv, qkv, gate_up, hidden, intermediate;
};

struct Kept {
    Kept(const LayerShape& s, Pieces pieces) {
        const Sizes n(s);
        attention_in = pieces.take<uint16_t>(n.rows * n.hidden);
        attention_scale = pieces.take<float>(n.rows);
        qkv = pieces.take<uint16_t>(n.rows * n.qkv);
        mixed = pieces.take<uint16_t>(n.rows * n.mixed);
        lse = pieces.take<float>(n.rows * s.heads);
        middle = pieces.take<float>(n.rows * n.hidden);
        mlp_in = pieces.take<uint16_t>(n.rows * n.hidden);
        mlp_scale = pieces.take<float>(n.rows);
        gate_up = pieces.take<uint16_t>(n.rows * n.gate_up);
        bytes = pieces.bytes();
    }
    uint16_t *attention_in, *qkv, *mixed, *mlp_in, *gate_up;
    float *attention_scale, *lse, *middle, *mlp_scale;  // middle: the residual stream between attention and MLP
    int64_t bytes;
};

struct ForwardScratch {
    ForwardScratch(const Sizes& n, Pieces pieces) {
        delta = pieces.take<uint16_t>(n.rows * n.hidden);
        activated = pieces.take<uint16_t>(n.rows * n.intermediate);
        bytes = pieces.bytes();
    }
    uint16_t *delta, *activated;
    int64_t bytes;
};

// What the MLP's half needs lies where the half of attention, which comes after it, has its own.
struct BackwardScratch {
    BackwardScratch(const Sizes& n, Pieces pieces) {
        normed = pieces.take<uint16_t>(n.rows * n.hidden);
        partials = pieces.take<float>((n.rows + 63) / 64 * n.hidden);
        Pieces mlp = pieces, attention = pieces;
        narrowed = mlp.take<uint16_t>(n.rows * n.hidden);
        activated = mlp.take<uint16_t>(n.rows * n.intermediate);
        gate_up = mlp.take<uint16_t>(n.rows * n.gate_up);
        middle = attention.take<float>(n.rows * n.hidden);
        delta = attention.take<uint16_t>(n.rows * n.hidden);
        mixed = attention.take<uint16_t>(n.rows * n.mixed);
        qkv = attention.take<uint16_t>(n.rows * n.qkv);
        bytes = std::max(mlp.bytes(), attention.bytes());
    }
    uint16_t* normed;  // The gradient of what a norm gave.
    float* partials;
    uint16_t *narrowed, *activated, *gate_up;
    float* middle;
    uint16_t *delta, *mixed, *qkv;
    int64_t bytes;
};

// out = x · weightᵀ, of weight [out_size, in_size]
void linear(const Team& team, const uint16_t* x, const uint16_t* weight, int64_t rows, int in_size, int out_size, uint16_t* out) {
    product(team, {x, in_size, false}, {weight, in_size, true}, static_cast<int>(rows), out_size, in_size, out, out_size);
}

// Of such a product: grad_x = grad · weight, and grad_weight = gradᵀ · x.
void linear_backward(const Team& team, const uint16_t* grad, const uint16_t* x, const uint16_t* weight, int64_t rows, int in_size,
                     int out_size, uint16_t* grad_x, uint16_t* grad_weight) {
    const int count = static_cast<int>(rows);
    product(team, {grad, out_size, true}, {x, in_size, false}, out_size, in_size, count, grad_weight, in_size);
    product(team, {grad, out_size, false}, {weight, in_size, false}, count, in_size, out_size, grad_x, in_size);
}

FlashShape flash_shape(const LayerShape& s, const Sizes& n) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
    return {s.batch, s.seq, s.heads, s.kv_heads, s.head_dim, s.window, static_cast<float>(scale), n.qkv, n.qkv};
}

// Queries and keys, which are neighbours, by their angles; sign −1 turns back.
void turn_heads(const Team& team, const LayerShape& s, const LayerInputs& in, float sign, uint16_t* qkv) {
    const Sizes n(s);
    turn(team, qkv, in.cosines, in.sines, n.rows, s.heads + s.kv_heads, s.head_dim / 2, n.qkv, s.angle_rows, sign, qkv);
}

}  // namespace

LayerBytes layer_bytes(const LayerShape& s) {
    const Sizes n(s);
    return {Kept(s, Pieces(nullptr)).bytes, ForwardScratch(n, Pieces(nullptr)).bytes, BackwardScratch(n, Pieces(nullptr)).bytes};
}

void layer_forward(const Team& team, const LayerShape& s, const LayerInputs& in, void* kept, void* scratch, float* out) {
    const Sizes n(s);
    const Kept keep(s, Pieces(kept));
    const ForwardScratch mine(n, Pieces(scratch));
    norm(team, in.x, nullptr, in.attention_norm, s.attention_eps, n.rows, n.hidden, nullptr, keep.attention_in,
         keep.attention_scale);
    linear(team, keep.attention_in, in.qkv, n.rows, n.hidden, n.qkv, keep.qkv);
    turn_heads(team, s, in, 1.0f, keep.qkv);
    const uint16_t *k = keep.qkv + n.mixed, *v = k + n.kv;
    flash_forward(team, flash_shape(s, n), keep.qkv, k, v, in.starts, keep.mixed, keep.lse);
    linear(team, keep.mixed, in.output, n.rows, n.mixed, n.hidden, mine.delta);
    norm(team, in.x, mine.delta, in.mlp_norm, s.mlp_eps, n.rows, n.hidden, keep.middle, keep.mlp_in, keep.mlp_scale);
    linear(team, keep.mlp_in, in.gate_up, n.rows, n.hidden, n.gate_up, keep.gate_up);
    swiglu_rows(team, keep.gate_up, keep.gate_up + n.intermediate, n.rows, n.intermediate, n.gate_up, mine.activated);
    linear(team, mine.activated, in.down, n.rows, n.intermediate, n.hidden, mine.delta);
    add(team, keep.middle, mine.delta, n.rows * n.hidden, out);
}

void layer_backward(const Team& team, const LayerShape& s, const LayerInputs& in, void* kept, const float* grad, void* scratch,
                    const LayerGradients& grads) {
    const Sizes n(s);
    const Kept keep(s, Pieces(kept));
    const BackwardScratch mine(n, Pieces(scratch));
    const int rows = static_cast<int>(n.rows);
    narrow(team, grad, n.rows * n.hidden, mine.narrowed);
    // The MLP's inner values are made again: activated is their gradient first, then they themselves.
    product(team, {mine.narrowed, n.hidden, false}, {in.down, n.intermediate, false}, rows, n.intermediate, n.hidden,
            mine.activated, n.intermediate);
    swiglu_backward(team, keep.gate_up, keep.gate_up + n.intermediate, mine.activated, n.rows, n.intermediate, n.gate_up,
                    mine.gate_up, mine.gate_up + n.intermediate, mine.activated);
    product(team, {mine.narrowed, n.hidden, true}, {mine.activated, n.intermediate, false}, n.hidden, n.intermediate, rows,
            grads.down, n.intermediate);
    linear_backward(team, mine.gate_up, keep.mlp_in, in.gate_up, n.rows, n.hidden, n.gate_up, mine.normed, grads.gate_up);
    norm_backward(team, mine.normed, grad, keep.middle, keep.mlp_scale, in.mlp_norm, n.rows, n.hidden, mine.partials, mine.middle,
                  mine.delta, grads.mlp_norm);
    linear_backward(team, mine.delta, keep.mixed, in.output, n.rows, n.mixed, n.hidden, mine.mixed, grads.output);
    const uint16_t *k = keep.qkv + n.mixed, *v = k + n.kv;
    uint16_t *grad_k = mine.qkv + n.mixed, *grad_v = grad_k + n.kv;
    flash_backward(team, flash_shape(s, n), keep.qkv, k, v, in.starts, keep.mixed, keep.lse, mine.mixed, mine.qkv, grad_k, grad_v);
    turn_heads(team, s, in, -1.0f, mine.qkv);
    linear_backward(team, mine.qkv, keep.attention_in, in.qkv, n.rows, n.hidden, n.qkv, mine.normed, grads.qkv);
    norm_backward(team, mine.normed, mine.middle, in.x, keep.attention_scale, in.attention_norm, n.rows, n.hidden, mine.partials,
                  grads.x, nullptr, grads.attention_norm);
}

}  // namespace liuyi
#endif
