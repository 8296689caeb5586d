// One token of each row of a head's product, found while the few columns that were just computed are in the cache: of the
// logits nothing else has to be written.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "linear.h"
#include "noise.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {

// The first column of the largest of some numbers, unless it is what was chosen or less.
LIUYI_INLINE void choose_largest(const float* numbers, int count, int first_column, Choice& chosen) {
    const float before = static_cast<float>(chosen.score);
    Floats most = all(before);
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) most = max(load(numbers + i), most);
    float largest_here = largest(most);
    for (; i < count; ++i) largest_here = numbers[i] > largest_here ? numbers[i] : largest_here;
    if (!(largest_here > before)) return;
    for (i = 0; numbers[i] != largest_here; ++i) {}
    chosen = {largest_here, first_column + i};
}

// The same of what numbers over a temperature and their noise add up to. No token has more than its number − log(uniform), so
// only those that come so far are looked at.
LIUYI_INLINE void choose_noisy(const float* numbers, int count, int first_column, float temperature, uint64_t key,
                               Choice& chosen) {
    for (int i = 0; i < count; i += kWidth) {
        const int left = count - i, column = first_column + i;
        const Floats logits = div(left >= kWidth ? load(numbers + i) : load_first(numbers + i, left), all(temperature));
        const Floats behind = sub(all(static_cast<float>(chosen.score)), logits);
        const Floats race = mul(uniform(upwards(column), key), rarity(behind));
        unsigned close = no_less(all(kRaceRounding), race) & lanes_of(left);
        for (; close != 0; close &= close - 1) {
            const int lane = __builtin_ctz(close);
            const double score = noisy(numbers[i + lane] / temperature, column + lane, key);
            if (score > chosen.score) chosen = {score, column + lane};
        }
    }
}

// What is chosen of the columns that some panels hold, [rows]; `space` is for kChoiceColumns of each row.
inline void choose(const Step& step, Range panels, float* space, Choice* chosen) {
    constexpr int most = kChoiceColumns / kPanel;
    const Linear& head = *step.head;
    std::fill(chosen, chosen + step.rows, Choice{});
    for (int first = panels.begin; first < panels.end; first += most) {
        const int end = std::min(panels.end, first + most), column = first * kPanel;
        const int count = std::min((end - first) * kPanel, head.rows - column);
        multiply(head, step.prepared, {0, step.rows}, {first, end}, space - column, kChoiceColumns, Epilogue::store);
        for (int row = 0; row < step.rows; ++row) {
            const float* logits = space + static_cast<size_t>(row) * kChoiceColumns;
            const float temperature = step.temperatures == nullptr ? 0.0f : step.temperatures[row];
            if (temperature > 0) choose_noisy(logits, count, column, temperature, step.keys[row], chosen[row]);
            else choose_largest(logits, count, column, chosen[row]);
        }
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
