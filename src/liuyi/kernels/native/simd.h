// One vector vocabulary for the kernels, as wide as the instruction set a file is compiled for.
//
// A file compiled with -mavx512f (and bw, vl, dq, vnni, bf16) sees 16 floats a vector in namespace avx512, or in namespace
// amx if it has the matrix unit besides; one compiled with -mavx2 -mfma sees 8 in namespace avx2. Kernels are written once,
// inside `namespace liuyi { namespace LIUYI_ISA`, against the names below. Loads and stores need no alignment.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AMX_TILE__) || defined(__AMXTILE__)  // as clang called it before its version 16
#define LIUYI_ISA amx
#define LIUYI_HAS_TILES
#elif defined(__AVX512F__)
#define LIUYI_ISA avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define LIUYI_ISA avx2
#else
#error "kernels are compiled for AVX512 (f, bw, vl, dq, vnni, bf16) or AVX2 with FMA"
#endif

#define LIUYI_INLINE inline __attribute__((always_inline))

namespace liuyi {
namespace LIUYI_ISA {

#if defined(__AVX512F__)

constexpr int kWidth = 16;
using Floats = __m512;
using Ints = __m512i;

LIUYI_INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
LIUYI_INLINE Floats load_floats(const void* p) { return _mm512_loadu_ps(static_cast<const float*>(p)); }
LIUYI_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
LIUYI_INLINE void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
LIUYI_INLINE Floats zero() { return _mm512_setzero_ps(); }
LIUYI_INLINE Floats all(float x) { return _mm512_set1_ps(x); }
LIUYI_INLINE Ints all(int32_t x) { return _mm512_set1_epi32(x); }
LIUYI_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
LIUYI_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
LIUYI_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
LIUYI_INLINE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
LIUYI_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
LIUYI_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
LIUYI_INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
LIUYI_INLINE Floats abs(Floats a) { return _mm512_abs_ps(a); }
LIUYI_INLINE Floats larger_magnitude(Floats a, Floats b) { return _mm512_range_ps(a, b, 0b1011); }
LIUYI_INLINE Floats square_root(Floats a) { return _mm512_sqrt_ps(a); }
LIUYI_INLINE Floats nearest(Floats a) { return _mm512_roundscale_ps(a, 0); }
LIUYI_INLINE Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
LIUYI_INLINE Ints to_ints(Floats a) { return _mm512_cvtps_epi32(a); }
LIUYI_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
LIUYI_INLINE Ints bits_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
LIUYI_INLINE Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
template <int bits>
LIUYI_INLINE Ints shift_left(Ints a) {
    return _mm512_slli_epi32(a, bits);
}
template <int bits>
LIUYI_INLINE Ints shift_right_signed(Ints a) {
    return _mm512_srai_epi32(a, bits);
}
template <int bits>
LIUYI_INLINE Ints shift_right(Ints a) {
    return _mm512_srli_epi32(a, bits);
}
// p·2^n, where n is what the low bits of `shifted`, which is n + 1.5·2^23, count.
LIUYI_INLINE Floats times_power(Floats p, Floats shifted) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}
// The low 8 bits of each of the 16 numbers, saturated.
LIUYI_INLINE void store_bytes(int8_t* p, Ints v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v)); }
// kWidth bytes to p[0], p[4], … without what lies between.
LIUYI_INLINE void store_bytes_apart(uint8_t* p, const int8_t* bytes) {
    const __m512i apart = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    _mm512_mask_storeu_epi8(p, 0x1111111111111111, apart);
}
LIUYI_INLINE Floats load_bytes(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

LIUYI_INLINE Floats load_bf16(const void* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16));
}
// Nearest bfloat16, ties to even; NaN stays NaN.
LIUYI_INLINE void store_bf16(void* p, Floats v) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
// The same to p[0], p[2], … without what lies between.
LIUYI_INLINE void store_bf16_apart(uint16_t* p, Floats v) {
    _mm512_mask_storeu_epi16(p, 0x55555555, _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v))));
}
// The same for numbers too small to be normal too, which the conversion above makes zero.
LIUYI_INLINE __m256i to_bf16_exactly(Floats v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
LIUYI_INLINE void store_bf16_exactly(void* p, Floats v) { _mm256_storeu_si256(static_cast<__m256i*>(p), to_bf16_exactly(v)); }
// Past the caches, which need not read first what is written; p on 32 bytes, and an sfence before others read it.
LIUYI_INLINE void stream_bf16_exactly(void* p, Floats v) { _mm256_stream_si256(static_cast<__m256i*>(p), to_bf16_exactly(v)); }
// The first or second of each pair of bfloat16 numbers.
LIUYI_INLINE Floats first_bf16(Ints pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
LIUYI_INLINE Floats second_bf16(Ints pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// The first n of a vector, the rest zero; n in 0..kWidth.
LIUYI_INLINE Floats load_first(const float* p, int n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
LIUYI_INLINE void store_first(float* p, Floats v, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}

LIUYI_INLINE __m256 lower_half(Floats v) { return _mm512_castps512_ps256(v); }
LIUYI_INLINE __m256 upper_half(Floats v) { return _mm512_extractf32x8_ps(v, 1); }
LIUYI_INLINE __m256i lower_half(Ints v) { return _mm512_castsi512_si256(v); }
LIUYI_INLINE __m256i upper_half(Ints v) { return _mm512_extracti32x8_epi32(v, 1); }

#else

constexpr int kWidth = 8;
using Floats = __m256;
using Ints = __m256i;

LIUYI_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
LIUYI_INLINE Floats load_floats(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
LIUYI_INLINE Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
LIUYI_INLINE void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
LIUYI_INLINE Floats zero() { return _mm256_setzero_ps(); }
LIUYI_INLINE Floats all(float x) { return _mm256_set1_ps(x); }
LIUYI_INLINE Ints all(int32_t x) { return _mm256_set1_epi32(x); }
LIUYI_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
LIUYI_INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
LIUYI_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
LIUYI_INLINE Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
LIUYI_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
LIUYI_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
LIUYI_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
LIUYI_INLINE Floats square_root(Floats a) { return _mm256_sqrt_ps(a); }
LIUYI_INLINE Floats abs(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
LIUYI_INLINE Floats larger_magnitude(Floats a, Floats b) { return max(abs(a), abs(b)); }
LIUYI_INLINE Floats nearest(Floats a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LIUYI_INLINE Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
LIUYI_INLINE Ints to_ints(Floats a) { return _mm256_cvtps_epi32(a); }
LIUYI_INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
LIUYI_INLINE Ints bits_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
LIUYI_INLINE Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
template <int bits>
LIUYI_INLINE Ints shift_left(Ints a) {
    return _mm256_slli_epi32(a, bits);
}
template <int bits>
LIUYI_INLINE Ints shift_right_signed(Ints a) {
    return _mm256_srai_epi32(a, bits);
}
template <int bits>
LIUYI_INLINE Ints shift_right(Ints a) {
    return _mm256_srli_epi32(a, bits);
}
LIUYI_INLINE Floats times_power(Floats p, Floats shifted) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
LIUYI_INLINE void store_bytes(int8_t* p, Ints v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
LIUYI_INLINE void store_bytes_apart(uint8_t* p, const int8_t* bytes) {
    for (int i = 0; i < kWidth; ++i) p[4 * i] = static_cast<uint8_t>(bytes[i]);
}
LIUYI_INLINE Floats load_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

LIUYI_INLINE Floats load_bf16(const void* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16));
}
LIUYI_INLINE void store_bf16(void* p, Floats v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i numbers = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_ORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(_mm256_set1_epi32(0x7fc00000), rounded, numbers), 16);
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(halves));
}
LIUYI_INLINE void store_bf16_apart(uint16_t* p, Floats v) {
    uint16_t rounded[kWidth];
    store_bf16(rounded, v);
    for (int i = 0; i < kWidth; ++i) p[2 * i] = rounded[i];
}
LIUYI_INLINE void store_bf16_exactly(void* p, Floats v) { store_bf16(p, v); }
LIUYI_INLINE void stream_bf16_exactly(void* p, Floats v) { store_bf16(p, v); }
LIUYI_INLINE Floats first_bf16(Ints pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
LIUYI_INLINE Floats second_bf16(Ints pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

LIUYI_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LIUYI_INLINE Floats load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
LIUYI_INLINE void store_first(float* p, Floats v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }

#endif

// ---- made of the above, the same arithmetic in both ----

// Sums in a fixed tree: lane i with lane i+8 (16 lanes only), then i+4, i+2, i+1.
LIUYI_INLINE float sum(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
LIUYI_INLINE float largest(__m256 v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
LIUYI_INLINE int32_t sum(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
#if defined(__AVX512F__)
LIUYI_INLINE float sum(Floats v) { return sum(_mm256_add_ps(lower_half(v), upper_half(v))); }
LIUYI_INLINE float largest(Floats v) { return largest(_mm256_max_ps(lower_half(v), upper_half(v))); }
LIUYI_INLINE int32_t sum(Ints v) { return sum(_mm256_add_epi32(lower_half(v), upper_half(v))); }
#endif

constexpr float kLog2E = 1.44269504f;

constexpr float kShift = 12582912.0f;  // 1.5·2^23: what is added to it is rounded to a whole number

// 2^(r + n) to a relative error of 2e-7, and 2^0 is 1; r in −0.5..0.5, n = shifted − kShift in −126..127.
LIUYI_INLINE Floats exp2_of_parts(Floats r, Floats shifted) {
    Floats p = all(1.3264727e-3f);  // of all polynomials with p(0) = 1 the one of the least relative error
    p = fma(p, r, all(9.671513e-3f));
    p = fma(p, r, all(5.5507336e-2f));
    p = fma(p, r, all(2.4022242e-1f));
    p = fma(p, r, all(6.93147e-1f));
    p = fma(p, r, all(1.0f));
    return times_power(p, shifted);
}

// 2^x for x up to 127; no less than 2^−64. NaN stays NaN: of two operands the processor gives the second where one of them
// is none.
LIUYI_INLINE Floats exp2(Floats x) {
    x = max(all(-64.0f), x);
    const Floats shifted = add(x, all(kShift));
    return exp2_of_parts(sub(x, sub(shifted, all(kShift))), shifted);
}

// 1 + e^−x, no more than e^87, to a relative error of 2e-7 and 1.3e-8 for each unit of x.
LIUYI_INLINE Floats inverse_sigmoid(Floats x) {
    x = min(all(44.0f), max(all(-87.0f), x));
    const Floats shifted = fma(x, all(-kLog2E), all(kShift));
    return add(all(1.0f), exp2_of_parts(fma(x, all(-kLog2E), sub(all(kShift), shifted)), shifted));
}

LIUYI_INLINE Floats silu(Floats x) { return div(x, inverse_sigmoid(x)); }

// The same four bytes in every lane.
LIUYI_INLINE Ints all_ints(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return all(four);
}
LIUYI_INLINE Floats all_floats(const void* p) {
    float one;
    std::memcpy(&one, p, 4);
    return all(one);
}

// Nearest bfloat16, ties to even; numbers only (no NaN).
LIUYI_INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
LIUYI_INLINE float from_bf16(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
