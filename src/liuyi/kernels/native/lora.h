// Low-rank additions of single tokens, y += up·(down·x) (LoRA, arXiv 2106.09685), in float32.
#pragma once

#include "norm.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {

LIUYI_INLINE float dot(const float* a, const float* b, int count) {
    Floats sums = zero();
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) sums = fma(load(a + i), load(b + i), sums);
    if (i < count) sums = fma(load_first(a + i, count - i), load_first(b + i, count - i), sums);
    return sum(sums);
}

LIUYI_INLINE void add_scaled(const float* x, float scale, int count, float* y) {
    const Floats factor = all(scale);
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) store(y + i, fma(load(x + i), factor, load(y + i)));
    if (i < count) {
        const int left = count - i;
        store_first(y + i, fma(load_first(x + i, left), factor, load_first(y + i, left)), left);
    }
}

// x [columns], y [rows]
inline void add_low_rank(const LowRank& change, const float* x, int columns, float* y, int rows) {
    for (int r = 0; r < change.rank; ++r) {
        add_scaled(change.up + static_cast<size_t>(r) * rows, dot(change.down + static_cast<size_t>(r) * columns, x, columns),
                   rows, y);
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
