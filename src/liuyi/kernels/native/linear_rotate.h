// The rotation in which int8 groups are rounded: of weights when they are packed, of x when it is prepared.
//
// One large number in a group makes the steps of all others coarse. Rotated, it is spread over all of them, and since
// the rotation is orthogonal and its own inverse, products are what they were (rotations before rounding: QuaRot, arXiv
// 2404.00456). A group's blocks of 64 are mixed, and each is rotated by itself: with X the 8×8 matrix that a block fills
// row by row and H Hadamard's matrix of order 8, R(X) = H·Xᵀ·H / 8. All instruction sets take the same sums in the same
// order.
#pragma once

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

constexpr int kRotated = 64;  // Columns of a block.

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

// Two rows that follow each other, in one piece: it is read in such pieces soon, which halves on their way would delay.
LIUYI_INLINE void store_rows(float* out, __m256 first, __m256 second) {
    _mm512_storeu_ps(out, _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1));
}

#else

LIUYI_INLINE void store_rows(float* out, __m256 first, __m256 second) {
    _mm256_storeu_ps(out, first);
    _mm256_storeu_ps(out + 8, second);
}

#endif

// v = R(v).
template <class Vector>
LIUYI_INLINE void rotate_rows(Vector (&v)[8]) {
    hadamard_rows(v);
    transpose_rows(v);
    hadamard_rows(v);
    for (Vector& row : v) row = row * 0.125f;
}

// A block, in place or not.
LIUYI_INLINE void rotate_block(const float* x, float* out) {
    __m256 v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
    rotate_rows(v);
    for (int i = 0; i < 8; i += 2) store_rows(out + 8 * i, v[i], v[i + 1]);
}

// Two blocks that follow each other, in place: the same sums as of one at a time.
LIUYI_INLINE void rotate_two_blocks(float* x) {
#if defined(__AVX512F__)
    __m512 v[8];
    for (int i = 0; i < 8; i += 2) {
        const __m512 first = load(x + 8 * i), second = load(x + kRotated + 8 * i);
        v[i] = _mm512_shuffle_f32x4(first, second, 0x44);
        v[i + 1] = _mm512_shuffle_f32x4(first, second, 0xee);
    }
    rotate_rows(v);
    for (int i = 0; i < 8; i += 2) {
        store(x + 8 * i, _mm512_shuffle_f32x4(v[i], v[i + 1], 0x44));
        store(x + kRotated + 8 * i, _mm512_shuffle_f32x4(v[i], v[i + 1], 0xee));
    }
#else
    rotate_block(x, x);
    rotate_block(x + kRotated, x + kRotated);
#endif
}

// Every block becomes a sum of all `blocks` of them, again by an orthogonal matrix that is its own inverse: of three and
// four, what twice their mean leaves of each; of two, sum and difference.
template <int blocks>
LIUYI_INLINE void mix_blocks(const float* x, float* out) {
    for (int i = 0; i < kRotated; i += kWidth) {
        Floats v[blocks];
        for (int b = 0; b < blocks; ++b) v[b] = load(x + b * kRotated + i);
        if constexpr (blocks == 2) {
            const Floats half = all(0.70710678f);
            store(out + i, mul(add(v[0], v[1]), half));
            store(out + kRotated + i, mul(sub(v[0], v[1]), half));
        } else {
            Floats total = add(v[0], v[1]);
            for (int b = 2; b < blocks; ++b) total = add(total, v[b]);
            const Floats twice = mul(total, all(2.0f / blocks));
            for (int b = 0; b < blocks; ++b) store(out + b * kRotated + i, sub(v[b], twice));
        }
    }
}

// A group of so many blocks, the first `count` columns of which exist and the rest are zero.
template <int blocks>
LIUYI_INLINE void rotate_group(const float* x, int count, float* out) {
    constexpr int group = blocks * kRotated;
    if (count < group) {
        std::memcpy(out, x, sizeof(float) * static_cast<size_t>(count));
        std::memset(out + count, 0, sizeof(float) * static_cast<size_t>(group - count));
        x = out;
    }
    if constexpr (blocks > 1) {
        mix_blocks<blocks>(x, out);
        x = out;
    }
    for (int b = 0; b + 1 < blocks; b += 2) rotate_two_blocks(out + b * kRotated);
    if (blocks % 2 == 1) rotate_block(x + (blocks - 1) * kRotated, out + (blocks - 1) * kRotated);
}

// The same for a whole group whose size is known only here, in place or not.
inline void rotate_whole_group(const float* x, int group, float* out) {
    switch (group / kRotated) {
        case 1: return rotate_group<1>(x, group, out);
        case 2: return rotate_group<2>(x, group, out);
        case 3: return rotate_group<3>(x, group, out);
        default: return rotate_group<4>(x, group, out);
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
