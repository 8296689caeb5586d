// The kernels of training.h, compiled once for each instruction set.
#pragma once

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "simd.h"
#include "swiglu.h"
#include "training.h"

namespace liuyi {
namespace LIUYI_ISA {

constexpr int64_t kRows = 64;           // rows of a part
constexpr int64_t kElements = 1 << 15;  // elements of a part
constexpr int64_t kFewRows = 4;

inline int parts_of(int64_t count, int64_t each) { return static_cast<int>((count + each - 1) / each); }
inline int64_t end_of(int part, int64_t count, int64_t each) { return count < (part + 1) * each ? count : (part + 1) * each; }

// Long arrays are read once, and asked for this far ahead: the processor by itself stops at the end of each page.
constexpr int64_t kAheadBytes = 2048;

template <class T>
LIUYI_INLINE void ask_ahead(const T* from) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes);
}

void norm(const Team& team, const float* x, const uint16_t* delta, const float* weight, float eps, int64_t rows, int size,
          float* sum_out, uint16_t* out, float* scale) {
    for_each_part(team, parts_of(rows, kRows), [&](int part) {
        for (int64_t row = part * kRows; row < end_of(part, rows, kRows); ++row) {
            const float* from = x + row * size;
            Floats squares = zero();
            for (int i = 0; i < size; i += kWidth) {
                Floats v = load(from + i);
                if (delta != nullptr) {
                    v = add(v, load_bf16(delta + row * size + i));
                    store(sum_out + row * size + i, v);
                }
                squares = fma(v, v, squares);
            }
            if (delta != nullptr) from = sum_out + row * size;
            scale[row] = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
            for (int i = 0; i < size; i += kWidth) {
                store_bf16(out + row * size + i, mul(mul(load(from + i), all(scale[row])), load(weight + i)));
            }
        }
    });
}

void norm_backward(const Team& team, const uint16_t* grad, const float* stream, const float* x, const uint16_t* delta,
                   const float* scale, const float* weight, int64_t rows, int size, float* partials, float* grad_x,
                   uint16_t* grad_delta, float* grad_weight, uint16_t* out) {
    const int parts = parts_of(rows, kRows);
    for_each_part(team, parts, [&](int part) {
        float* mine = partials + static_cast<int64_t>(part) * size;
        std::memset(mine, 0, sizeof(float) * size);
        for (int64_t row = part * kRows; row < end_of(part, rows, kRows); ++row) {
            const uint16_t* g = grad + row * size;
            const float* from = x + row * size;
            const uint16_t* added = delta == nullptr ? nullptr : delta + row * size;
            const Floats r = all(scale[row]);
            const auto scaled = [&](int i) {
                const Floats v = load(from + i);
                return mul(added == nullptr ? v : add(v, load_bf16(added + i)), r);
            };
            Floats along = zero();
            for (int i = 0; i < size; i += kWidth) {
                const Floats product = mul(load_bf16(g + i), scaled(i));
                store(mine + i, add(load(mine + i), product));
                along = fma(product, load(weight + i), along);
            }
            const Floats mean = all(sum(along) / static_cast<float>(size));
            for (int i = 0; i < size; i += kWidth) {
                const Floats w = load(weight + i), normed = scaled(i);
                Floats v = mul(r, sub(mul(load_bf16(g + i), w), mul(normed, mean)));
                if (out != nullptr) store_bf16(out + row * size + i, mul(normed, w));
                if (stream != nullptr) v = add(v, load(stream + row * size + i));
                store(grad_x + row * size + i, v);
                if (grad_delta != nullptr) store_bf16(grad_delta + row * size + i, v);
            }
        }
    });
    std::memset(grad_weight, 0, sizeof(float) * size);
    for (int part = 0; part < parts; ++part) {
        const float* theirs = partials + static_cast<int64_t>(part) * size;
        for (int i = 0; i < size; i += kWidth) store(grad_weight + i, add(load(grad_weight + i), load(theirs + i)));
    }
}

void add(const Team& team, const float* x, const uint16_t* delta, int64_t count, float* out) {
    for_each_part(team, parts_of(count, kElements), [&](int part) {
        for (int64_t i = part * kElements; i < end_of(part, count, kElements); i += kWidth) {
            store(out + i, add(load(x + i), load_bf16(delta + i)));
        }
    });
}

void narrow(const Team& team, const float* x, int64_t count, uint16_t* out) {
    for_each_part(team, parts_of(count, kElements), [&](int part) {
        for (int64_t i = part * kElements; i < end_of(part, count, kElements); i += kWidth) store_bf16(out + i, load(x + i));
    });
}

void swiglu_rows(const Team& team, const uint16_t* gate, const uint16_t* up, int64_t rows, int width, int64_t stride,
                 uint16_t* out) {
    for_each_part(team, parts_of(rows, kFewRows), [&](int part) {
        for (int64_t row = part * kFewRows; row < end_of(part, rows, kFewRows); ++row) {
            for (int i = 0; i < width; i += kWidth) {
                const int64_t at = row * stride + i;
                store_bf16(out + row * width + i, swiglu(load_bf16(gate + at), load_bf16(up + at)));
            }
        }
    });
}

void swiglu_backward(const Team& team, const uint16_t* gate, const uint16_t* up, const uint16_t* grad, int64_t rows,
                     int width, int64_t stride, uint16_t* grad_gate, uint16_t* grad_up, uint16_t* activated) {
    for_each_part(team, parts_of(rows, kFewRows), [&](int part) {
        for (int64_t row = part * kFewRows; row < end_of(part, rows, kFewRows); ++row) {
            for (int i = 0; i < width; i += kWidth) {
                const int64_t at = row * stride + i, beside = row * width + i;
                ask_ahead(gate + at);
                ask_ahead(up + at);
                const SwigluGradient found =
                    swiglu_gradient(load_bf16(gate + at), load_bf16(up + at), load_bf16(grad + beside));
                store_bf16(grad_gate + at, found.gate);
                store_bf16(grad_up + at, found.up);
                if (activated != nullptr) store_bf16(activated + beside, found.activated);
            }
        }
    });
}

void turn(const Team& team, const uint16_t* x, const float* cosines, const float* sines, int64_t rows, int heads, int half,
          int64_t stride, int64_t angle_rows, float sign, uint16_t* out) {
    for_each_part(team, parts_of(rows, kRows), [&](int part) {
        for (int64_t row = part * kRows; row < end_of(part, rows, kRows); ++row) {
            const float *cosine = cosines + row % angle_rows * half, *sine = sines + row % angle_rows * half;
            for (int head = 0; head < heads; ++head) {
                const uint16_t* low = x + row * stride + head * 2 * half;
                uint16_t* to = out + row * stride + head * 2 * half;
                for (int i = 0; i < half; i += kWidth) {
                    const Floats a = load_bf16(low + i), b = load_bf16(low + half + i);
                    const Floats c = load(cosine + i), s = mul(load(sine + i), all(sign));
                    store_bf16(to + i, sub(mul(a, c), mul(b, s)));
                    store_bf16(to + half + i, add(mul(b, c), mul(a, s)));
                }
            }
        }
    });
}

void cross_entropy(const Team& team, uint16_t* logits, const int64_t* targets, const float* weights, int64_t rows,
                   int vocab, float* losses) {
    for_each_part(team, parts_of(rows, kFewRows), [&](int part) {
        for (int64_t row = part * kFewRows; row < end_of(part, rows, kFewRows); ++row) {
            uint16_t* z = logits + row * vocab;
            Floats most = all(-INFINITY);
            for (int i = 0; i < vocab; i += kWidth) most = max(most, load_bf16(z + i));
            const float highest = largest(most);
            Floats total = zero();
            for (int i = 0; i < vocab; i += kWidth) {
                total = add(total, exp2(fma(load_bf16(z + i), all(kLog2E), all(-highest * kLog2E))));
            }
            const float log_total = highest + std::log(sum(total));
            const float wanted = from_bf16(z[targets[row]]) - log_total;
            const float weight = weights != nullptr ? weights[row] : 1.0f;
            losses[row] = -wanted * weight;
            for (int i = 0; i < vocab; i += kWidth) {
                const Floats share = exp2(fma(load_bf16(z + i), all(kLog2E), all(-log_total * kLog2E)));
                store_bf16(z + i, mul(share, all(weight)));
            }
            z[targets[row]] = to_bf16((std::exp(wanted) - 1.0f) * weight);
        }
    });
}

// The sum of 64-bit words, kept in lanes until the end: modulo 2⁶⁴ their order does not matter.
struct Words {
    uint64_t lanes[kWidth / 2] = {};
    LIUYI_INLINE void add(const float* values) {
        uint64_t words[kWidth / 2];
        std::memcpy(words, values, sizeof(words));
        for (int i = 0; i < kWidth / 2; ++i) lanes[i] += words[i];
    }
    uint64_t sum() const {
        uint64_t total = 0;
        for (const uint64_t lane : lanes) total += lane;
        return total;
    }
};

LIUYI_INLINE Floats gradient_at(const Gradient& g, int64_t i) {
    return g.grad != nullptr ? load(g.grad + i) : load_bf16(g.rounded + i);
}
LIUYI_INLINE void ask_ahead(const Gradient& g, int64_t i) {
    if (g.grad != nullptr) ask_ahead(g.grad + i);
    else ask_ahead(g.rounded + i);
}

// Several arrays cut into parts of elements, numbered through.
class Parts {
  public:
    template <class Size>
    Parts(int arrays, const Size& size) : ends_(new int[arrays]) {
        for (int i = 0; i < arrays; ++i) ends_[i] = count_ += parts_of(size(i), kElements);
    }
    int count() const { return count_; }
    // Which array a part is of, and its number there.
    void find(int part, int* array, int* own) const {
        *array = 0;
        while (ends_[*array] <= part) ++*array;
        *own = *array == 0 ? part : part - ends_[*array - 1];
    }

  private:
    const std::unique_ptr<int[]> ends_;
    int count_ = 0;
};

double squares(const Team& team, const Gradient* gradients, int count) {
    const Parts parts(count, [&](int i) { return gradients[i].count; });
    const std::unique_ptr<double[]> sums(new double[parts.count()]);
    for_each_part(team, parts.count(), [&](int number) {
        int array, part;
        parts.find(number, &array, &part);
        const Gradient& g = gradients[array];
        Floats total = zero();
        for (int64_t i = part * kElements; i < end_of(part, g.count, kElements); i += kWidth) {
            ask_ahead(g, i);
            const Floats v = gradient_at(g, i);
            total = fma(v, v, total);
        }
        sums[number] = sum(total);
    });
    double total = 0.0;
    for (int number = 0; number < parts.count(); ++number) total += sums[number];
    return total;
}

// From element to element of one tensor, after so many steps; sums of what was there and of what is.
Sums adamw_part(const AdamWTensor& t, double steps, int64_t begin, int64_t end) {
    const AdamW& a = t.settings;
    const Floats rate = all(static_cast<float>(a.lr / (1.0 - std::pow(a.beta1, steps))));
    const Floats root = all(static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(a.beta2, steps))));
    const float new_first = static_cast<float>(1.0 - a.beta1), new_second = static_cast<float>(1.0 - a.beta2);
    const bool streamed = reinterpret_cast<uintptr_t>(t.copy) % 32 == 0;  // nobody reads it soon
    Words before, after;
    for (int64_t i = begin; i < end; i += kWidth) {
        for (const float* values : {t.weight, t.first, t.second}) {
            ask_ahead(values + i);
            before.add(values + i);
        }
        ask_ahead(t.gradient, i);
        const Floats g = mul(gradient_at(t.gradient, i), all(a.grad_scale));
        const Floats m = fma(sub(g, load(t.first + i)), all(new_first), load(t.first + i));
        const Floats v = fma(mul(g, g), all(new_second), mul(load(t.second + i), all(static_cast<float>(a.beta2))));
        const Floats kept = mul(load(t.weight + i), all(1.0f - a.decay));
        const Floats w = sub(kept, div(mul(rate, m), fma(square_root(v), root, all(a.eps))));
        store(t.first + i, m);
        store(t.second + i, v);
        store(t.weight + i, w);
        if (t.copy != nullptr && streamed) stream_bf16_exactly(t.copy + i, w);
        else if (t.copy != nullptr) store_bf16_exactly(t.copy + i, w);
        for (const float* values : {t.weight, t.first, t.second}) after.add(values + i);
    }
    _mm_sfence();  // What was streamed is seen by whoever waits for this part.
    return {before.sum(), after.sum()};
}

inline uint32_t bits_of(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    return bits;
}

Sums adamw(const Team& team, const AdamWTensor* tensors, int count) {
    const Parts parts(count, [&](int i) { return tensors[i].gradient.count; });
    const std::unique_ptr<Sums[]> sums(new Sums[parts.count()]);
    for_each_part(team, parts.count(), [&](int number) {
        int array, part;
        parts.find(number, &array, &part);
        const AdamWTensor& t = tensors[array];
        sums[number] = adamw_part(t, *t.step + 1.0, part * kElements, end_of(part, t.gradient.count, kElements));
    });
    Sums total{0, 0};
    for (int i = 0; i < count; ++i) {
        total.before += bits_of(*tensors[i].step);
        total.after += bits_of(*tensors[i].step += 1.0f);
    }
    for (int number = 0; number < parts.count(); ++number) {
        total.before += sums[number].before;
        total.after += sums[number].after;
    }
    return total;
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
