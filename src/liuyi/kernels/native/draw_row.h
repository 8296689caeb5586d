// draw.h for one instruction set: included by draw_avx2.cpp and draw_avx512.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "draw.h"
#include "lanes.h"
#include "noise.h"

namespace liuyi {
namespace LIUYI_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// e^-x for x from 0 on, no less than 2^-64.
LIUYI_INLINE Floats exp_of_less(Floats x) {
    x = min(all(44.0f), x);
    const Floats shifted = fma(x, all(-kLog2E), all(kShift));
    return exp2_of_parts(fma(x, all(-kLog2E), sub(all(kShift), shifted)), shifted);
}

// The smallest of some numbers times `sign`, 1 or −1.
float smallest(const float* numbers, int count, float sign = 1.0f) {
    Floats least = all(kInfinity);
    int i = 0;
    for (; i + kWidth <= count; i += kWidth) least = min(mul(load(numbers + i), all(sign)), least);
    float found = -largest(sub(zero(), least));
    for (; i < count; ++i) found = std::min(found, sign * numbers[i]);
    return found;
}
float greatest(const float* numbers, int count) { return -smallest(numbers, count, -1.0f); }

// Where a number that is there stands first.
int place_of(float number, const float* numbers) {
    for (int i = 0;; i += kWidth) {
        const unsigned found = no_less(load(numbers + i), all(number)) & no_less(all(number), load(numbers + i));
        if (found != 0) return i + __builtin_ctz(found);
    }
}

// ---- the smallest numbers of an array that together weigh enough ----

float weight_up_to(const float* keys, const float* weights, int count, float most) {
    Floats sum_of_lanes = zero();
    const Floats limit = all(most);
    for (int i = 0; i < count; i += kWidth) {
        const Lanes lanes = no_less(limit, load(keys + i)) & lanes_of(count - i);
        sum_of_lanes = add(sum_of_lanes, only(lanes, load(weights + i)));
    }
    return sum(sum_of_lanes);
}

// Keeps those with keys up to `most`, or those above it; how many.
int split(float* keys, float* weights, int count, float most, bool above) {
    int kept = 0;
    const Floats limit = all(most);
    for (int i = 0; i < count; i += kWidth) {
        const Floats key = load(keys + i), weight = load(weights + i);
        const Lanes lanes = (above ? greater(key, limit) : no_less(limit, key)) & lanes_of(count - i);
        pack(keys + kept, key, lanes);
        pack(weights + kept, weight, lanes);
        kept += number_of(lanes);
    }
    return kept;
}

// The smallest key such that the weights of all keys up to it reach `wanted`; the largest if they never do. The arrays are
// used up. Halves the range of the keys until few are left, as quickselect does the array.
float reaching(float* keys, float* weights, int count, double wanted) {
    constexpr int few = 32;
    float low = std::nextafter(smallest(keys, count), -kInfinity), high = greatest(keys, count);
    while (count > few) {
        const float middle = 0.5f * low + 0.5f * high;
        if (!(low < middle && middle < high)) return high;
        const float weight = weight_up_to(keys, weights, count, middle);
        const bool above = weight < wanted;
        if (above) {
            wanted -= weight;
            low = middle;
        } else {
            high = middle;
        }
        count = split(keys, weights, count, middle, above);
    }
    for (int i = 0; i < count; ++i) {
        int least = i;
        for (int j = i + 1; j < count; ++j) least = keys[j] < keys[least] ? j : least;
        std::swap(keys[i], keys[least]);
        std::swap(weights[i], weights[least]);
        wanted -= weights[i];
        if (wanted <= 0) return keys[i];
    }
    return high;
}

// ---- a row ----

// Tokens that may still come, with their logits over the temperature, and what is asked of them.
class Row {
  public:
    Row(const Draw& draw, int vocab, float* memory)
        : draw_(draw), vocab_(vocab), values_(memory), keys_(values_ + vocab + 64), weights_(keys_ + vocab + 64),
          ids_(reinterpret_cast<int32_t*>(weights_ + vocab + 64)) {}

    int32_t token() {
        take_all();
        // Of a broken model, or a grammar that allows nothing.
        if (count_ == 0) return 0;
        if (draw_.temperature == 0 || most_ == kInfinity) return ids_[place_of(most_, values_)];
        if (draw_.top_k > 0) keep_top_k(draw_.top_k);
        if (draw_.top_p < 1) keep_top_p();
        if (draw_.min_p > 0) keep_from(most_ + std::log(draw_.min_p));
        if (draw_.typical_p < 1) keep_typical();
        return first_of_race();
    }

    void score(const Score& score) {
        take_all();
        const float mass = most_ + std::log(weigh());
        *score.logprob = draw_.logits[score.token] - mass;
        keep_top_k(score.top);
        // Of a broken model there may be fewer.
        for (int i = 0; i < score.top; ++i) score.top_ids[i] = 0, score.top_logprobs[i] = -kInfinity;
        for (int i = 0; i < score.top && i < count_; ++i) {
            int next = i;
            for (int j = i + 1; j < count_; ++j) next = values_[j] > values_[next] ? j : next;
            std::rotate(values_ + i, values_ + next, values_ + next + 1);
            std::rotate(ids_ + i, ids_ + next, ids_ + next + 1);
            score.top_ids[i] = ids_[i];
            score.top_logprobs[i] = values_[i] - mass;
        }
    }

  private:
    // What is no number may not come.
    void take_all() {
        const float* logits = changed();
        const Floats temperature = all(draw_.temperature > 0 ? draw_.temperature : 1.0f), never = all(-kInfinity);
        for (int i = 0; i < vocab_; i += kWidth) {
            const int left = vocab_ - i;
            const Floats value = div(left >= kWidth ? load(logits + i) : load_first(logits + i, left), temperature);
            append(value, upwards(i), greater(value, never) & allowed(i) & lanes_of(left));
        }
        most_ = greatest(values_, count_);
    }

    // Which of the tokens from `first` on, a multiple of kWidth, the grammar allows.
    LIUYI_INLINE Lanes allowed(int first) const {
        return static_cast<Lanes>(draw_.allowed == nullptr ? ~0u : draw_.allowed[first / 32] >> first % 32);
    }

    // The logits with penalties and biases.
    const float* changed() const {
        if (draw_.seen_count == 0 && draw_.biased_count == 0) return draw_.logits;
        std::memcpy(keys_, draw_.logits, sizeof(float) * vocab_);
        for (int i = 0; i < draw_.biased_count; ++i) keys_[draw_.biased[i]] += draw_.biases[i];
        for (int i = 0; i < draw_.seen_count; ++i) {
            const float logit = keys_[draw_.seen[i]], count = draw_.counts[i];
            const float repeated = logit > 0 ? logit / draw_.repetition : logit * draw_.repetition;
            keys_[draw_.seen[i]] = repeated - (count > 0 ? draw_.presence : 0.0f) - draw_.frequency * count;
        }
        return keys_;
    }

    LIUYI_INLINE void append(Floats value, Ints ids, Lanes lanes) {
        pack(values_ + count_, value, lanes);
        pack(ids_ + count_, ids, lanes);
        count_ += number_of(lanes);
    }

    // Keeps those for which keeps(value) has a lane.
    template <class Keeps>
    LIUYI_INLINE void keep(const Keeps& keeps) {
        const int count = count_;
        count_ = 0;
        for (int i = 0; i < count; i += kWidth) {
            const Floats value = load(values_ + i);
            append(value, load_ints(ids_ + i), keeps(value) & lanes_of(count - i));
        }
    }

    void keep_from(float least) {
        keep([&](Floats value) { return no_less(value, all(least)); });
    }

    // numbers[i] = of(values[i]); a few numbers beyond are written too.
    template <class Of>
    LIUYI_INLINE void fill(float* numbers, const Of& of) const {
        for (int i = 0; i < count_; i += kWidth) store(numbers + i, of(load(values_ + i)));
    }

    void keep_top_k(int k) {
        if (k >= count_) return;
        fill(keys_, [](Floats value) { return sub(zero(), value); });
        fill(weights_, [](Floats) { return all(1.0f); });
        keep_from(-reaching(keys_, weights_, count_, k));
    }

    // Leaves in `weights_` how probable each is, of the likeliest one; their sum.
    float weigh() {
        fill(weights_, [&](Floats value) { return exp_of_less(sub(all(most_), value)); });
        return weight_up_to(values_, weights_, count_, kInfinity);
    }

    void keep_top_p() {
        const float total = weigh();
        fill(keys_, [](Floats value) { return sub(zero(), value); });
        keep_from(-reaching(keys_, weights_, count_, static_cast<double>(draw_.top_p) * total));
    }

    // A token is as strange as its surprise is far from the mean surprise.
    void keep_typical() {
        const float total = weigh(), log_total = std::log(total);
        fill(keys_, [&](Floats value) { return sub(all(most_), value); });
        Floats weighted = zero();
        for (int i = 0; i < count_; i += kWidth) {
            weighted = add(weighted, only(lanes_of(count_ - i), mul(load(weights_ + i), load(keys_ + i))));
        }
        const Floats mean = all(sum(weighted) / total + log_total), log_of_total = all(log_total);
        const auto strange = [&](Floats value) { return abs(sub(add(sub(all(most_), value), log_of_total), mean)); };
        fill(keys_, strange);
        const float most = reaching(keys_, weights_, count_, static_cast<double>(draw_.typical_p) * total);
        keep([&](Floats value) { return no_less(all(most), strange(value)); });
    }

    // Who is smallest in exponential / probability. The uniform number behind an exponential one is no larger, so whoever
    // has that above the exponential / probability of any other cannot be the first.
    int32_t first_of_race() {
        Floats least = all(kInfinity);
        store(values_ + count_, all(-kInfinity));
        for (int i = 0; i < count_; i += kWidth) {
            const Floats rare = rarity(sub(all(most_), load(values_ + i)));
            const Floats race = mul(uniform(load_ints(ids_ + i), draw_.key), rare);
            least = min(race, least);
            store(weights_ + i, rare);
            store(keys_ + i, race);
        }
        const int ahead = place_of(-largest(sub(zero(), least)), keys_);
        const Floats bound = all(static_cast<float>(kRaceRounding * exponential(ids_[ahead], draw_.key) * weights_[ahead]));
        int32_t winner = ids_[ahead];
        double highest = -kInfinity;
        for (int i = 0; i < count_; i += kWidth) {
            unsigned close = no_less(bound, load(keys_ + i)) & lanes_of(count_ - i);
            for (; close != 0; close &= close - 1) {
                const int at = i + __builtin_ctz(close);
                const double reached = noisy(values_[at], ids_[at], draw_.key);
                if (reached > highest) highest = reached, winner = ids_[at];
            }
        }
        return winner;
    }

    const Draw& draw_;
    const int vocab_;
    float *values_, *keys_, *weights_;
    int32_t* ids_;
    int count_ = 0;
    float most_ = 0;
};

}  // namespace

int32_t draw(const Draw& row, int vocab, float* memory) { return Row(row, vocab, memory).token(); }

void score(const Score& score, int vocab, float* memory) {
    Draw row{};
    row.logits = score.logits;
    Row(row, vocab, memory).score(score);
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
