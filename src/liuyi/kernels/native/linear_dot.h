// Products of bytes, four to a 32-bit lane, as each instruction set does them best.
//
// int8 weights are stored with 128 added because VNNI multiplies unsigned by signed bytes: a sum of products of such
// weights starts from kWeightOffset times the sum of the other factor. AVX2 has no such product that keeps 16 bits, so
// there the 128 is taken off again and the sign moved to the other factor.
#pragma once

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

#if defined(__AVX512F__)

constexpr int kWeightOffset = -128;

// c + Σ u·s with u in 0..255. Assembly, because gcc 12 copies and spills the accumulators of the intrinsic.
LIUYI_INLINE Ints dot_unsigned(Ints c, Ints u, Ints s) {
    asm("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(u), "v"(s));
    return c;
}
LIUYI_INLINE Ints dot_weights(Ints c, Ints weights, Ints x) { return dot_unsigned(c, weights, x); }

// c + Σ of two products of bfloat16 numbers.
LIUYI_INLINE Floats dot_bf16(Floats c, Ints a, Ints b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}

#else

constexpr int kWeightOffset = 0;

// c + Σ u·s with u in 0..127 and s in −127..127.
LIUYI_INLINE Ints dot_unsigned(Ints c, Ints u, Ints s) {
    return _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
// c + Σ (weights − 128)·x, for weights in 1..255 and x in −127..127.
LIUYI_INLINE Ints dot_weights(Ints c, Ints weights, Ints x) {
    const Ints back = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
    return dot_unsigned(c, _mm256_abs_epi8(x), _mm256_sign_epi8(back, x));
}
LIUYI_INLINE Floats dot_bf16(Floats c, Ints a, Ints b) {
    return fma(second_bf16(a), second_bf16(b), fma(first_bf16(a), first_bf16(b), c));
}

#endif

}  // namespace LIUYI_ISA
}  // namespace liuyi
