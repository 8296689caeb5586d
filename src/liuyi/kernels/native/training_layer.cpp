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

// What norms give is made again where they are differentiated, and the stream between attention and MLP with it.
struct Kept {
    Kept(const LayerShape& s, Pieces pieces) {
        const Sizes n(s);
        attention_scale = pieces.take<float>(n.rows);
        qkv = pieces.take<uint16_t>(n.rows * n.qkv);
        mixed = pieces.take<uint16_t>(n.rows * n.mixed);
        lse = pieces.take<float>(n.rows * s.heads);
        delta = pieces.take<uint16_t>(n.rows * n.hidden);
        mlp_scale = pieces.take<float>(n.rows);
        gate_up = pieces.take<uint16_t>(n.rows * n.gate_up);
        bytes = pieces.bytes();
    }
    uint16_t *qkv, *mixed, *delta, *gate_up;  // delta: what attention adds to the stream
    float *attention_scale, *lse, *mlp_scale;
    int64_t bytes;
};

struct ForwardScratch {
    ForwardScratch(const Sizes& n, Pieces pieces) {
        normed = pieces.take<uint16_t>(n.rows * n.hidden);
        middle = pieces.take<float>(n.rows * n.hidden);
        activated = pieces.take<uint16_t>(n.rows * n.intermediate);
        delta = pieces.take<uint16_t>(n.rows * n.hidden);
        bytes = pieces.bytes();
    }
    uint16_t *normed, *activated, *delta;
    float* middle;  // The residual stream between attention and MLP.
    int64_t bytes;
};

// What the MLP's half needs lies where the half of attention, which comes after it, has its own.
struct BackwardScratch {
    BackwardScratch(const Sizes& n, Pieces pieces) {
        normed = pieces.take<uint16_t>(n.rows * n.hidden);
        partials = pieces.take<float>((n.rows + 63) / 64 * n.hidden);
        middle = pieces.take<float>(n.rows * n.hidden);
        delta = pieces.take<uint16_t>(n.rows * n.hidden);
        Pieces mlp = pieces, attention = pieces;
        narrowed = mlp.take<uint16_t>(n.rows * n.hidden);
        activated = mlp.take<uint16_t>(n.rows * n.intermediate);
        gate_up = mlp.take<uint16_t>(n.rows * n.gate_up);
        mixed = attention.take<uint16_t>(n.rows * n.mixed);
        qkv = attention.take<uint16_t>(n.rows * n.qkv);
        bytes = std::max(mlp.bytes(), attention.bytes());
    }
    uint16_t* normed;  // The gradient of what a norm gave, and then that itself.
    float *partials, *middle;
    uint16_t *delta, *narrowed, *activated, *gate_up, *mixed, *qkv;
    int64_t bytes;
};

// out = x · weightᵀ, of weight [out_size, in_size]
void linear(const Team& team, const uint16_t* x, const uint16_t* weight, int64_t rows, int in_size, int out_size, uint16_t* out) {
    product(team, {x, in_size, false}, {weight, in_size, true}, static_cast<int>(rows), out_size, in_size, out, out_size);
}

// Of such a product: gradᵀ · x, and grad · weight.
void weight_gradient(const Team& team, const uint16_t* grad, const uint16_t* x, int64_t rows, int in_size, int out_size,
                     uint16_t* grad_weight) {
    product(team, {grad, out_size, true}, {x, in_size, false}, out_size, in_size, static_cast<int>(rows), grad_weight, in_size);
}

void input_gradient(const Team& team, const uint16_t* grad, const uint16_t* weight, int64_t rows, int in_size, int out_size,
                    uint16_t* grad_x) {
    product(team, {grad, out_size, false}, {weight, in_size, false}, static_cast<int>(rows), in_size, out_size, grad_x, in_size);
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
    norm(team, in.x, nullptr, in.attention_norm, s.attention_eps, n.rows, n.hidden, nullptr, mine.normed, keep.attention_scale);
    linear(team, mine.normed, in.qkv, n.rows, n.hidden, n.qkv, keep.qkv);
    turn_heads(team, s, in, 1.0f, keep.qkv);
    const uint16_t *k = keep.qkv + n.mixed, *v = k + n.kv;
    flash_forward(team, flash_shape(s, n), keep.qkv, k, v, in.starts, keep.mixed, keep.lse);
    linear(team, keep.mixed, in.output, n.rows, n.mixed, n.hidden, keep.delta);
    norm(team, in.x, keep.delta, in.mlp_norm, s.mlp_eps, n.rows, n.hidden, mine.middle, mine.normed, keep.mlp_scale);
    product_swiglu(team, {mine.normed, n.hidden, false}, {in.gate_up, n.hidden, true}, static_cast<int>(n.rows), n.intermediate,
                   n.hidden, keep.gate_up, mine.activated);
    linear(team, mine.activated, in.down, n.rows, n.intermediate, n.hidden, mine.delta);
    add(team, mine.middle, mine.delta, n.rows * n.hidden, out);
}

void layer_backward(const Team& team, const LayerShape& s, const LayerInputs& in, void* kept, const float* grad, void* scratch,
                    const LayerGradients& grads) {
    const Sizes n(s);
    const Kept keep(s, Pieces(kept));
    const BackwardScratch mine(n, Pieces(scratch));
    narrow(team, grad, n.rows * n.hidden, mine.narrowed);
    // The MLP's inner values are made again: activated is their gradient first, then they themselves.
    input_gradient(team, mine.narrowed, in.down, n.rows, n.intermediate, n.hidden, mine.activated);
    swiglu_backward(team, keep.gate_up, keep.gate_up + n.intermediate, mine.activated, n.rows, n.intermediate, n.gate_up,
                    mine.gate_up, mine.gate_up + n.intermediate, mine.activated);
    weight_gradient(team, mine.narrowed, mine.activated, n.rows, n.intermediate, n.hidden, grads.down);
    input_gradient(team, mine.gate_up, in.gate_up, n.rows, n.hidden, n.gate_up, mine.normed);
    norm_backward(team, mine.normed, grad, in.x, keep.delta, keep.mlp_scale, in.mlp_norm, n.rows, n.hidden, mine.partials,
                  mine.middle, mine.delta, grads.mlp_norm, mine.normed);
    weight_gradient(team, mine.gate_up, mine.normed, n.rows, n.hidden, n.gate_up, grads.gate_up);
    weight_gradient(team, mine.delta, keep.mixed, n.rows, n.mixed, n.hidden, grads.output);
    input_gradient(team, mine.delta, in.output, n.rows, n.mixed, n.hidden, mine.mixed);
    const uint16_t *k = keep.qkv + n.mixed, *v = k + n.kv;
    uint16_t *grad_k = mine.qkv + n.mixed, *grad_v = grad_k + n.kv;
    flash_backward(team, flash_shape(s, n), keep.qkv, k, v, in.starts, keep.mixed, keep.lse, mine.mixed, mine.qkv, grad_k, grad_v);
    turn_heads(team, s, in, -1.0f, mine.qkv);
    input_gradient(team, mine.qkv, in.qkv, n.rows, n.hidden, n.qkv, mine.normed);
    norm_backward(team, mine.normed, mine.middle, in.x, nullptr, keep.attention_scale, in.attention_norm, n.rows, n.hidden,
                  mine.partials, grads.x, nullptr, grads.attention_norm, mine.normed);
    weight_gradient(team, mine.qkv, mine.normed, n.rows, n.hidden, n.qkv, grads.qkv);
}

}  // namespace liuyi
#endif
