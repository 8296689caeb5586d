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

// columns first..first+kWidth of x, with zeros beyond `columns`.
LIUYI_INLINE Floats load_columns(const float* x, int first, int columns) {
    const int left = columns - first;
    if (left >= kWidth) return load(x + first);
    return left > 0 ? load_first(x + first, left) : zero();
}

LIUYI_INLINE void prepare_f32(const Linear& w, const float* x, float* out) {
    std::memcpy(out, x, sizeof(float) * w.columns);
    std::fill(out + w.columns, out + w.depth, 0.0f);
}

LIUYI_INLINE void prepare_bf16(const Linear& w, const float* x, uint16_t* out) {
    for (int k = 0; k < w.columns; ++k) out[k] = to_bf16(x[k]);
    for (int k = w.columns; k < w.depth; ++k) out[k] = 0;
}

// One group to int8: returns its scale, the largest magnitude / 127, and the sum of the numbers.
LIUYI_INLINE float quantize_group(const float* x, int columns, int group, int8_t* out, int32_t& total) {
    Floats peak = zero();
    for (int k = 0; k < group; k += kWidth) peak = max(peak, abs(load_columns(x, k, columns)));
    const float highest = largest(peak);
    const Floats inverse = all(highest > 1e-30f ? 127.0f / highest : 0.0f);
    Ints sums = all(0);
    for (int k = 0; k < group; k += kWidth) {
        const Ints numbers = to_ints(mul(load_columns(x, k, columns), inverse));
        store_bytes(out + k, numbers);
        sums = add(sums, numbers);
    }
    total = sum(sums);
    return highest / 127.0f;
}

// 32 whole numbers of −127..127 as bytes.
LIUYI_INLINE void store_32_bytes(int8_t* out, const __m256i (&v)[8], int first) {
    const __m256i low = _mm256_packs_epi32(v[first], v[first + 1]), high = _mm256_packs_epi32(v[first + 2], v[first + 3]);
    const __m256i bytes = _mm256_packs_epi16(low, high);  // Fours of bytes in the order 0 2 4 6 1 3 5 7.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(bytes, order));
}

// As quantize_group, for a rotated group, which never leaves the registers.
LIUYI_INLINE float quantize_rotated(const float* x, int columns, int8_t* out, int32_t& total) {
    __m256 v[8], peak = _mm256_setzero_ps();
    rotate_group(x, columns, v);
    for (const __m256& row : v) peak = _mm256_max_ps(peak, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), row));
    const float highest = largest(peak);
    const __m256 inverse = _mm256_set1_ps(highest > 1e-30f ? 127.0f / highest : 0.0f);
    __m256i numbers[8], sums = _mm256_setzero_si256();
    for (int i = 0; i < 8; ++i) {
        numbers[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        sums = _mm256_add_epi32(sums, numbers[i]);
    }
    store_32_bytes(out, numbers, 0);
    store_32_bytes(out + 32, numbers, 4);
    total = sum(sums);
    return highest / 127.0f;
}

#if defined(__AVX512F__)

LIUYI_INLINE void store_32_bytes(int8_t* first, int8_t* second, const __m512i (&v)[8], int from) {
    const __m512i low = _mm512_packs_epi32(v[from], v[from + 1]), high = _mm512_packs_epi32(v[from + 2], v[from + 3]);
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first), lower_half(bytes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(second), upper_half(bytes));
}

// As quantize_rotated, for two whole groups at once.
LIUYI_INLINE void quantize_rotated_pair(const float* x, int8_t* out, float* scales, int32_t (&totals)[2]) {
    __m512 v[8], peak = zero();
    rotate_groups(x, v);
    for (const __m512& row : v) peak = max(peak, abs(row));
    const float highest[2] = {largest(lower_half(peak)), largest(upper_half(peak))};
    __m256 inverse[2];
    for (int i = 0; i < 2; ++i) {
        inverse[i] = _mm256_set1_ps(highest[i] > 1e-30f ? 127.0f / highest[i] : 0.0f);
        scales[i] = highest[i] / 127.0f;
    }
    const __m512 both = _mm512_insertf32x8(_mm512_castps256_ps512(inverse[0]), inverse[1], 1);
    __m512i numbers[8], sums = all(0);
    for (int i = 0; i < 8; ++i) {
        numbers[i] = to_ints(mul(v[i], both));
        sums = add(sums, numbers[i]);
    }
    store_32_bytes(out, out + kRotated, numbers, 0);
    store_32_bytes(out + 32, out + kRotated + 32, numbers, 4);
    totals[0] = sum(lower_half(sums));
    totals[1] = sum(upper_half(sums));
}

#endif

LIUYI_INLINE void prepare_int8(const Linear& w, const float* x, uint8_t* out) {
    const int groups = w.depth / kInt8Group;
    int8_t* numbers = reinterpret_cast<int8_t*>(out);
    float* scales = reinterpret_cast<float*>(out + w.depth);
    int32_t* starts = reinterpret_cast<int32_t*>(scales + groups);
    int g = 0;
#if defined(__AVX512F__)
    for (; (g + 2) * kInt8Group <= w.columns; g += 2) {
        int32_t totals[2];
        quantize_rotated_pair(x + g * kInt8Group, numbers + g * kInt8Group, scales + g, totals);
        for (int i = 0; i < 2; ++i) starts[g + i] = kWeightOffset * totals[i];
    }
#endif
    for (; g < groups; ++g) {
        const int left = w.columns - g * kInt8Group;
        int32_t total;
        scales[g] = quantize_rotated(x + g * kInt8Group, left < kInt8Group ? left : kInt8Group, numbers + g * kInt8Group, total);
        starts[g] = kWeightOffset * total;
    }
}

LIUYI_INLINE void prepare_int4(const Linear& w, const float* x, uint8_t* out) {
    const int groups = w.depth / kInt4Group;
    float* scales = reinterpret_cast<float*>(out + w.depth);
    for (int g = 0; g < groups; ++g) {
        int32_t total;
        int8_t* numbers = reinterpret_cast<int8_t*>(out) + g * kInt4Group;
        const int left = w.columns - g * kInt4Group;
        scales[g] = quantize_group(x + g * kInt4Group, left < kInt4Group ? left : kInt4Group, kInt4Group, numbers, total);
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
