// int8 weights, int8 activations, both with a scale for every group of columns.
//
// Within a group sums are whole numbers, exact in any order; groups are added in float32 from the first to the last.
#pragma once

#include "linear_dot.h"
#include "linear_tile.h"
#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

// The unsigned bytes that vpdpbusd wants, 128 more than the weights. Where there is AMX, they lie as they are.
LIUYI_INLINE Ints load_weights(const uint8_t* p) {
#ifdef LIUYI_HAS_TILES
    return _mm512_xor_si512(load_ints(p), _mm512_set1_epi8(-128));
#else
    return load_ints(p);
#endif
}

struct Int8Kernel {
    // 7·2·2 sums, two vectors of weights and one of x are as many as 32 registers hold.
    static constexpr int kRows = kWidth == 16 ? 7 : 3;
    static int steps(const Linear& w) { return w.depth / 4; }

    template <int R>
    static LIUYI_INLINE void multiply(const Linear& w, const uint8_t* weights, int slab, const uint8_t* x, Ahead ahead,
                                      Floats (&total)[R][2]) {
        const int groups = w.depth / w.group;
        for (int g = 0; g < groups; ++g) {
            const uint8_t* scales = x + w.depth + 4 * g;
            Ints c[R][2];
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) c[r][0] = c[r][1] = all_ints(scales + r * w.prepared_bytes + 4 * groups);
#pragma GCC unroll 4
            for (int k = 0; k < w.group / 4; ++k) {
                const uint8_t* from = weights + 4 * k * kPanel + slab * 2 * sizeof(Ints);
                ahead.fetch();
                const Ints w0 = load_weights(from), w1 = load_weights(from + sizeof(Ints));
                LIUYI_UNROLL
                for (int r = 0; r < R; ++r) {
                    const Ints four = all_ints(x + r * w.prepared_bytes + g * w.group + 4 * k);
                    c[r][0] = dot_weights(c[r][0], w0, four);
                    c[r][1] = dot_weights(c[r][1], w1, four);
                }
            }
            weights += w.group * kPanel;
            const Floats s0 = load_bf16(weights + slab * 4 * kWidth), s1 = load_bf16(weights + slab * 4 * kWidth + 2 * kWidth);
            weights += 2 * kPanel;
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) {
                const Floats s = all_floats(scales + r * w.prepared_bytes);
                total[r][0] = fma(to_floats(c[r][0]), mul(s0, s), total[r][0]);
                total[r][1] = fma(to_floats(c[r][1]), mul(s1, s), total[r][1]);
            }
        }
    }
};

}  // namespace LIUYI_ISA
}  // namespace liuyi
