// int4 weights with a scale and a minimum for every 32 columns, int8 activations with a scale for the same columns.
//
// Of a group's part of the product, Σ (scale·q + minimum)·s·x = scale·s·Σ q·x + minimum·(s·Σ x), the first sum is whole
// numbers and the second bracket came with x. Groups are added in float32 from the first to the last.
#pragma once

#include "linear_dot.h"
#include "linear_tile.h"
#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

struct Int4Kernel {
    static constexpr int kRows = kWidth == 16 ? 6 : 3;
    static int steps(const Linear& w) { return w.depth / 8; }

    template <int R>
    static LIUYI_INLINE void multiply(const Linear& w, const uint8_t* weights, int slab, const uint8_t* x, Ahead ahead,
                                      Floats (&total)[R][2]) {
        const int groups = w.depth / kInt4Group;
        for (int g = 0; g < groups; ++g) {
            const uint8_t* scales = x + w.depth + 4 * g;
            Ints c[R][2];
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) c[r][0] = c[r][1] = all(0);
#pragma GCC unroll 4
            for (int k = 0; k < kInt4Group; k += 8) {
                const uint8_t* from = weights + k * kPanel / 2 + slab * 2 * sizeof(Ints);
                ahead.fetch();
                const Ints w0 = load_ints(from), w1 = load_ints(from + sizeof(Ints));
                LIUYI_UNROLL
                for (int r = 0; r < R; ++r) {
                    const uint8_t* numbers = x + r * w.prepared_bytes + g * kInt4Group + k;
                    const Ints low = all_ints(numbers), high = all_ints(numbers + 4);
                    c[r][0] = dot_unsigned(c[r][0], low_halves(w0), low);
                    c[r][1] = dot_unsigned(c[r][1], low_halves(w1), low);
                    c[r][0] = dot_unsigned(c[r][0], high_halves(w0), high);
                    c[r][1] = dot_unsigned(c[r][1], high_halves(w1), high);
                }
            }
            weights += kInt4Group * kPanel / 2;
            const uint8_t* scale = weights + slab * 4 * kWidth;
            const uint8_t* minimum = scale + 2 * kPanel;
            weights += 4 * kPanel;
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) {
                const Floats s = all_floats(scales + r * w.prepared_bytes);
                const Floats sums = all_floats(scales + r * w.prepared_bytes + 4 * groups);
                LIUYI_UNROLL
                for (int v = 0; v < 2; ++v) {
                    const Floats whole = to_floats(c[r][v]);
                    total[r][v] = fma(whole, mul(load_bf16(scale + 2 * kWidth * v), s), total[r][v]);
                    total[r][v] = fma(load_bf16(minimum + 2 * kWidth * v), sums, total[r][v]);
                }
            }
        }
    }

  private:
    static LIUYI_INLINE Ints low_halves(Ints bytes) { return bits_and(bytes, all(0x0f0f0f0f)); }
    static LIUYI_INLINE Ints high_halves(Ints bytes) { return bits_and(shift_right<4>(bytes), all(0x0f0f0f0f)); }
};

}  // namespace LIUYI_ISA
}  // namespace liuyi
