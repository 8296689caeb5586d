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
LIUYI_INLINE void hadamard_rows(__m256 (&v)[8]) {
    for (int step = 4; step > 0; step /= 2) {
        for (int i = 0; i < 8; ++i) {
            if (i & step) continue;
            const __m256 a = v[i], b = v[i + step];
            v[i] = _mm256_add_ps(a, b);
            v[i + step] = _mm256_sub_ps(a, b);
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

LIUYI_INLINE void rotate_group(const float* x, int count, float* out) {
    __m256 v[8];
    rotate_group(x, count, v);
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(out + 8 * i, v[i]);
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
