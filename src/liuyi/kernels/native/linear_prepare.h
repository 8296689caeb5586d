// Turning a row of x into what the kernels of a format read. Included once per instruction set.
//   float32   [depth]
//   bfloat16  [depth]
//   int8      [depth] numbers of the rotated groups (linear_rotate.h), then a float32 scale for each group, then an
//             int32 for each group: what its integer sum starts from, because the weights are stored with 128 added
//             (linear_dot.h)
//   int4      [depth] numbers, then a float32 scale for each group, then for each group the sum of its scaled numbers,
//             which the weights' minimum is multiplied with
#pragma once

#include <algorithm>

#include "linear.h"
#include "linear_dot.h"
#include "linear_rotate.h"
#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

LIUYI_INLINE void prepare_f32(const Linear& w, const float* x, float* out) {
    std::memcpy(out, x, sizeof(float) * w.columns);
    std::fill(out + w.columns, out + w.depth, 0.0f);
}

LIUYI_INLINE void prepare_bf16(const Linear& w, const float* x, uint16_t* out) {
    for (int k = 0; k < w.columns; ++k) out[k] = to_bf16(x[k]);
    for (int k = w.columns; k < w.depth; ++k) out[k] = 0;
}

// One group to int8: returns its scale, the largest magnitude / 127, and the sum of the numbers. Neither depends on the
// order of the columns, so four of each are on their way at once.
template <int group>
LIUYI_INLINE float quantize_group(const float* x, int8_t* out, int32_t& total) {
    constexpr int vectors = group / kWidth, chains = vectors < 4 ? vectors : 4;
    Floats peaks[chains];
    Ints sums[chains];
    LIUYI_UNROLL
    for (int i = 0; i < chains; ++i) peaks[i] = zero(), sums[i] = all(0);
#pragma GCC unroll 32
    for (int i = 0; i < vectors; ++i) peaks[i % chains] = larger_magnitude(peaks[i % chains], load(x + i * kWidth));
    LIUYI_UNROLL
    for (int i = 1; i < chains; ++i) peaks[0] = max(peaks[0], peaks[i]);
    const float highest = largest(peaks[0]);
    const Floats inverse = all(highest > 1e-30f ? 127.0f / highest : 0.0f);
    const auto whole = [&](int i) { return to_ints(mul(load(x + i * kWidth), inverse)); };
#if defined(__AVX512F__)
    if constexpr (vectors % 4 == 0) {
        const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), ones = _mm512_set1_epi8(1);
#pragma GCC unroll 32
        for (int i = 0; i < vectors; i += 4) {
            const Ints a = _mm512_packs_epi32(whole(i), whole(i + 1)), b = _mm512_packs_epi32(whole(i + 2), whole(i + 3));
            const Ints bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
            _mm512_storeu_si512(out + i * kWidth, bytes);
            sums[i / 4 % chains] = dot_unsigned(sums[i / 4 % chains], ones, bytes);
        }
    } else
#endif
#pragma GCC unroll 32
    for (int i = 0; i < vectors; ++i) {
        const Ints numbers = whole(i);
        store_bytes(out + i * kWidth, numbers);
        sums[i % chains] = add(sums[i % chains], numbers);
    }
    LIUYI_UNROLL
    for (int i = 1; i < chains; ++i) sums[0] = add(sums[0], sums[i]);
    total = sum(sums[0]);
    return highest / 127.0f;
}

template <int blocks>
LIUYI_INLINE void prepare_int8_groups(const Linear& w, const float* x, uint8_t* out) {
    constexpr int group = blocks * kInt8Block;
    const int groups = w.depth / group;
    float* scales = reinterpret_cast<float*>(out + w.depth);
    int32_t* starts = reinterpret_cast<int32_t*>(scales + groups);
    alignas(64) float rotated[group];
    for (int g = 0; g < groups; ++g) {
        const int start = g * group, left = w.columns - start;
        rotate_group<blocks>(x + start, left < group ? left : group, rotated);
        int32_t total;
        scales[g] = quantize_group<group>(rotated, reinterpret_cast<int8_t*>(out) + start, total);
        starts[g] = kWeightOffset * total;
    }
}

LIUYI_INLINE void prepare_int8(const Linear& w, const float* x, uint8_t* out) {
    switch (w.group / kInt8Block) {
        case 1: return prepare_int8_groups<1>(w, x, out);
        case 2: return prepare_int8_groups<2>(w, x, out);
        case 3: return prepare_int8_groups<3>(w, x, out);
        default: return prepare_int8_groups<4>(w, x, out);
    }
}

LIUYI_INLINE void prepare_int4(const Linear& w, const float* x, uint8_t* out) {
    const int groups = w.depth / kInt4Group;
    float* scales = reinterpret_cast<float*>(out + w.depth);
    for (int g = 0; g < groups; ++g) {
        const int start = g * kInt4Group, left = w.columns - start;
        const float* from = x + start;
        float filled[kInt4Group] = {};
        if (left < kInt4Group) {
            std::memcpy(filled, from, sizeof(float) * static_cast<size_t>(left));
            from = filled;
        }
        int32_t total;
        scales[g] = quantize_group<kInt4Group>(from, reinterpret_cast<int8_t*>(out) + start, total);
        scales[groups + g] = scales[g] * static_cast<float>(total);
    }
}

void prepare(const Linear& w, const float* x, void* out) {
    switch (w.format) {
        case Format::f32: return prepare_f32(w, x, static_cast<float*>(out));
        case Format::bf16:
            if (w.rounds_x) return prepare_bf16(w, x, static_cast<uint16_t*>(out));
            return prepare_f32(w, x, static_cast<float*>(out));
        case Format::int8: return prepare_int8(w, x, static_cast<uint8_t*>(out));
        case Format::int4: return prepare_int4(w, x, static_cast<uint8_t*>(out));
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
