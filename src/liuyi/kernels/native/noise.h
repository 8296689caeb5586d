// The noise of a draw: numbers between 0 and 1 for a key and some tokens, by the mixing of MurmurHash3, as infer/sampling.py
// has them. The token that is drawn has the largest logit − log(exponential) (Gumbel's trick, arXiv 1611.01144).
#pragma once

#include <cmath>

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

#if defined(__AVX512F__)
LIUYI_INLINE Ints exclusive_or(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
LIUYI_INLINE Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
#else
LIUYI_INLINE Ints exclusive_or(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
LIUYI_INLINE Ints times(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
#endif

LIUYI_INLINE Floats uniform(Ints tokens, uint64_t key) {
    const auto whole = [](uint32_t x) { return all(static_cast<int32_t>(x)); };
    Ints x = exclusive_or(times(tokens, whole(0x9E3779B1u)), whole(static_cast<uint32_t>(key)));
    x = times(exclusive_or(x, shift_right<16>(x)), whole(0x85EBCA6Bu));
    x = exclusive_or(x, whole(static_cast<uint32_t>(key >> 32)));
    x = times(exclusive_or(x, shift_right<13>(x)), whole(0xC2B2AE35u));
    x = shift_right<1>(exclusive_or(x, shift_right<16>(x)));
    return min(mul(add(to_floats(x), all(0.5f)), all(0x1p-31f)), all(1.0f - 0x1p-24f));
}

// −log(1 − uniform), which is no less than the uniform number.
inline double exponential(int32_t token, uint64_t key) {
    float numbers[kWidth];
    store(numbers, uniform(all(token), key));
    return -std::log1p(-static_cast<double>(numbers[0]));
}

inline double noisy(float logit, int32_t token, uint64_t key) { return logit - std::log(exponential(token, key)); }

// What rounding may add to a product of a uniform number and an exponential.
constexpr float kRaceRounding = 1.0001f;

// e^x, no more than 2^126 and no less than 2^-64.
LIUYI_INLINE Floats rarity(Floats x) { return exp2(min(all(126.0f), mul(x, all(kLog2E)))); }

}  // namespace LIUYI_ISA
}  // namespace liuyi
