// Some of the numbers of a vector: comparisons, and packing what is left side by side.
#pragma once

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

#if defined(__AVX512F__)
using Lanes = __mmask16;
LIUYI_INLINE Lanes greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
LIUYI_INLINE Lanes no_less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
LIUYI_INLINE void pack(float* to, Floats v, Lanes lanes) { store(to, _mm512_maskz_compress_ps(lanes, v)); }
LIUYI_INLINE void pack(int32_t* to, Ints v, Lanes lanes) { _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(lanes, v)); }
LIUYI_INLINE Floats only(Lanes lanes, Floats v) { return _mm512_maskz_mov_ps(lanes, v); }
#else
using Lanes = uint8_t;
LIUYI_INLINE Lanes greater(Floats a, Floats b) { return static_cast<Lanes>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))); }
LIUYI_INLINE Lanes no_less(Floats a, Floats b) { return static_cast<Lanes>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))); }
template <class Number, class Vector>
LIUYI_INLINE void pack(Number* to, Vector v, Lanes lanes) {
    if (lanes == 0xff) return static_cast<void>(std::memcpy(to, &v, sizeof v));
    Number numbers[kWidth];
    std::memcpy(numbers, &v, sizeof v);
    for (unsigned left = lanes; left != 0; left &= left - 1) *to++ = numbers[__builtin_ctz(left)];
}
LIUYI_INLINE Floats only(Lanes lanes, Floats v) {
    const Ints bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all(int32_t{lanes}), bit), bit)));
}
#endif

LIUYI_INLINE Lanes lanes_of(int count) { return static_cast<Lanes>(count >= kWidth ? ~0u : (1u << count) - 1); }
LIUYI_INLINE Ints upwards(int from) {
    alignas(64) static constexpr int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return add(load_ints(numbers), all(int32_t{from}));
}
LIUYI_INLINE int number_of(Lanes lanes) { return __builtin_popcount(lanes); }

}  // namespace LIUYI_ISA
}  // namespace liuyi
