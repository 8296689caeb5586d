// What happens to a single row: root-mean-square norm, rotation by position, widening.
#pragma once

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

LIUYI_INLINE float inverse_rms(const float* x, int count, float eps) {
    Floats squares = zero();
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) {
        const Floats v = load(x + i);
        squares = fma(v, v, squares);
    }
    if (i < count) {
        const Floats v = load_first(x + i, count - i);
        squares = fma(v, v, squares);
    }
    return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(count) + eps);
}

// out = x / rms(x) · weight (arXiv 1910.07467)
LIUYI_INLINE void rms_norm(const float* x, const float* weight, int count, float eps, float* out) {
    const Floats scale = all(inverse_rms(x, count, eps));
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) store(out + i, mul(mul(load(x + i), scale), load(weight + i)));
    if (i < count) {
        const int left = count - i;
        store_first(out + i, mul(mul(load_first(x + i, left), scale), load_first(weight + i, left)), left);
    }
}

LIUYI_INLINE void rotate_some(const float* low, const float* high, const float* low_norm, const float* high_norm,
                              Floats inverse, const float* cosines, const float* sines, Floats scale, float* low_out,
                              float* high_out, int count) {
    Floats a = load_first(low, count), b = load_first(high, count);
    if (low_norm != nullptr) {
        a = mul(mul(a, inverse), load_first(low_norm, count));
        b = mul(mul(b, inverse), load_first(high_norm, count));
    }
    const Floats c = load_first(cosines, count), s = load_first(sines, count);
    store_first(low_out, mul(sub(mul(a, c), mul(b, s)), scale), count);
    store_first(high_out, mul(add(mul(b, c), mul(a, s)), scale), count);
}

// One head: its norm if there is one, then pairs (i, i + half) turned by their angles (arXiv 2104.09864), then scaled.
LIUYI_INLINE void rotate(const float* x, const float* norm, float eps, const float* cosines, const float* sines, int half,
                         float scale, float* out) {
    const Floats inverse = all(norm != nullptr ? inverse_rms(x, 2 * half, eps) : 1.0f);
    for (int i = 0; i < half; i += kWidth) {
        const int count = half - i < kWidth ? half - i : kWidth;
        const float *low_norm = norm != nullptr ? norm + i : nullptr, *high_norm = norm != nullptr ? norm + half + i : nullptr;
        rotate_some(x + i, x + half + i, low_norm, high_norm, inverse, cosines + i, sines + i, all(scale), out + i,
                    out + half + i, count);
    }
}

LIUYI_INLINE void widen(const uint16_t* bf16, int count, float* out) {
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) store(out + i, load_bf16(bf16 + i));
    for (; i < count; ++i) out[i] = from_bf16(bf16[i]);
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
