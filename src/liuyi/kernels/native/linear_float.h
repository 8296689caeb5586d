// float32 and bfloat16 weights. Every output is one chain of fused multiply-adds over the columns in order.
//
// On Intel's cores without AMX vdpbf16ps does no more work than a float32 product and rounds x besides, so bfloat16
// weights are widened in registers; where it is twice as fast (AMD from Zen 4 on), x is rounded and it is used.
#pragma once

#include "linear_dot.h"
#include "linear_tile.h"
#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

struct F32Kernel {
    static constexpr int kRows = kWidth == 16 ? 12 : 6;
    static int steps(const Linear& w) { return w.depth; }

    template <int R>
    static LIUYI_INLINE void multiply(const Linear& w, const uint8_t* weights, int slab, const uint8_t* x, Ahead ahead,
                                      Floats (&total)[R][2]) {
        weights += slab * 2 * sizeof(Floats);
#pragma GCC unroll 2
        for (int k = 0; k < w.depth; ++k, weights += 4 * kPanel) {
            ahead.fetch();
            const Floats w0 = load_floats(weights), w1 = load_floats(weights + sizeof(Floats));
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) {
                const Floats one = all_floats(x + r * w.prepared_bytes + 4 * k);
                total[r][0] = fma(w0, one, total[r][0]);
                total[r][1] = fma(w1, one, total[r][1]);
            }
        }
    }
};

struct Bf16Kernel {
    static constexpr int kRows = kWidth == 16 ? 12 : 5;
    static int steps(const Linear& w) { return w.depth / 2; }

    template <int R>
    static LIUYI_INLINE void multiply(const Linear& w, const uint8_t* weights, int slab, const uint8_t* x, Ahead ahead,
                                      Floats (&total)[R][2]) {
        weights += slab * 2 * sizeof(Floats);
        for (int k = 0; k < w.depth; k += 2, weights += 4 * kPanel) {
            ahead.fetch();
            const Ints w0 = load_ints(weights), w1 = load_ints(weights + sizeof(Ints));
            const Floats first0 = first_bf16(w0), first1 = first_bf16(w1);
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) {
                const Floats one = all_floats(x + r * w.prepared_bytes + 4 * k);
                total[r][0] = fma(first0, one, total[r][0]);
                total[r][1] = fma(first1, one, total[r][1]);
            }
            const Floats second0 = second_bf16(w0), second1 = second_bf16(w1);
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) {
                const Floats one = all_floats(x + r * w.prepared_bytes + 4 * k + 4);
                total[r][0] = fma(second0, one, total[r][0]);
                total[r][1] = fma(second1, one, total[r][1]);
            }
        }
    }
};

struct Bf16PairKernel {
    static constexpr int kRows = kWidth == 16 ? 12 : 3;
    static int steps(const Linear& w) { return w.depth / 2; }

    template <int R>
    static LIUYI_INLINE void multiply(const Linear& w, const uint8_t* weights, int slab, const uint8_t* x, Ahead ahead,
                                      Floats (&total)[R][2]) {
        weights += slab * 2 * sizeof(Floats);
#pragma GCC unroll 2
        for (int k = 0; k < w.depth; k += 2, weights += 4 * kPanel) {
            ahead.fetch();
            const Ints w0 = load_ints(weights), w1 = load_ints(weights + sizeof(Ints));
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) {
                const Ints pair = all_ints(x + r * w.prepared_bytes + 2 * k);
                total[r][0] = dot_bf16(total[r][0], w0, pair);
                total[r][1] = dot_bf16(total[r][1], w1, pair);
            }
        }
    }
};

}  // namespace LIUYI_ISA
}  // namespace liuyi
