// The largest of each row of a product, found while the few columns that were just computed are in the cache: of a head's
// logits nothing else has to be written.
#pragma once

#include "linear.h"
#include "simd.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {

// The first column of the largest of some numbers, unless it is `than` or less.
LIUYI_INLINE void find_larger(const float* numbers, int count, int first_column, Likeliest& than) {
    Floats most = all(than.logit);
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) most = max(load(numbers + i), most);
    float largest_here = largest(most);
    for (; i < count; ++i) largest_here = numbers[i] > largest_here ? numbers[i] : largest_here;
    if (!(largest_here > than.logit)) return;
    for (i = 0; numbers[i] != largest_here; ++i) {}
    than = {largest_here, first_column + i};
}

// The likeliest of the columns that some panels hold, [rows]; `space` is for kLikeliestColumns of each row.
inline void find_likeliest(const Linear& w, const uint8_t* prepared, int rows, Range panels, float* space,
                           Likeliest* likeliest) {
    constexpr int most = kLikeliestColumns / kPanel;
    for (int row = 0; row < rows; ++row) likeliest[row] = Likeliest{};
    for (int first = panels.begin; first < panels.end; first += most) {
        const int end = panels.end - first < most ? panels.end : first + most, column = first * kPanel;
        const int left = w.rows - column, wide = (end - first) * kPanel, count = wide < left ? wide : left;
        multiply(w, prepared, {0, rows}, {first, end}, space - column, kLikeliestColumns, Epilogue::store);
        for (int row = 0; row < rows; ++row) {
            find_larger(space + static_cast<size_t>(row) * kLikeliestColumns, count, column, likeliest[row]);
        }
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
