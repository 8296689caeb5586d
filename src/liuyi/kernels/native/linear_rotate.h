// The rotation in which int8 groups are rounded: of weights when they are packed, of x when it is prepared.
//
// One large number among 64 makes the steps of all others coarse. Rotated, it is spread over all of them, and since the
// rotation is orthogonal and its own inverse, products are what they were. With X the 8×8 matrix that a group fills row
// by row and H Hadamard's matrix of order 8, it is R(X) = H·Xᵀ·H / 8 (rotations before rounding: QuaRot, arXiv
// 2404.00456). Eight vectors of eight in both instruction sets: the same sums in the same order.
#pragma once

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

constexpr int kRotated = 64;

// v = H·v for a matrix of eight rows.
template <class Vector>
LIUYI_INLINE void hadamard_rows(Vector (&v)[8]) {
    for (int step = 4; step > 0; step /= 2) {
        for (int i = 0; i < 8; ++i) {
            if (i & step) continue;
            const Vector a = v[i], b = v[i + step];
            v[i] = a + b;
            v[i + step] = a - b;
        }
    }
}

LIUYI_INLINE void transpose_rows(__m256 (&v)[8]) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

// R of 64 columns, of which the first `count` exist and the rest are zero, in registers.
LIUYI_INLINE void rotate_group(const float* x, int count, __m256 (&v)[8]) {
    float padded[kRotated] = {};
    if (count < kRotated) {
        std::memcpy(padded, x, sizeof(float) * static_cast<size_t>(count));
        x = padded;
    }
    for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
    hadamard_rows(v);
    transpose_rows(v);
    hadamard_rows(v);
    for (__m256& row : v) row = _mm256_mul_ps(row, _mm256_set1_ps(0.125f));
}

#if defined(__AVX512F__)

// Two matrices side by side, each in its half of the vectors.
LIUYI_INLINE void transpose_rows(__m512 (&v)[8]) {
    const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    const __m512i upper = _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    __m512 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_permutex2var_ps(fours[i], lower, fours[i + 4]);
        v[i + 4] = _mm512_permutex2var_ps(fours[i], upper, fours[i + 4]);
    }
}

// R of two whole groups that follow each other: the same sums as of one at a time.
LIUYI_INLINE void rotate_groups(const float* x, __m512 (&v)[8]) {
    for (int i = 0; i < 8; ++i) {
        const __m512 first = _mm512_castps256_ps512(_mm256_loadu_ps(x + 8 * i));
        v[i] = _mm512_insertf32x8(first, _mm256_loadu_ps(x + kRotated + 8 * i), 1);
    }
    hadamard_rows(v);
    transpose_rows(v);
    hadamard_rows(v);
    for (__m512& row : v) row = _mm512_mul_ps(row, _mm512_set1_ps(0.125f));
}

#endif

LIUYI_INLINE void rotate_group(const float* x, int count, float* out) {
    __m256 v[8];
    rotate_group(x, count, v);
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(out + 8 * i, v[i]);
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
