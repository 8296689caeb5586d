// The softmax of a row over a span of keys, in powers of two, and the joining of spans (online softmax, arXiv 1805.02867).
#pragma once

#include "simd.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {

// The softmax of a row over some keys: values mixed with weights 2^(score − most), and the sum of these weights.
struct Partial {
    float* mixed;  // [dim]
    float most, total;
};

constexpr float kUnseen = -1e30f;

// The total of weights that joins other spans without loss, whose own may then weigh no less than 2^−64.
constexpr float kMostTotal = 1 << 24;

// 2^x to a relative error of 9e-5, less than rounded weights are off; 2^0 is 1.
LIUYI_INLINE Floats short_exp2(Floats x) {
#if defined(__AVX512F__)
    const Floats r = _mm512_reduce_ps(x, 1);  // x − floor x
    Floats p = all(0.07706735f);              // of all polynomials with p(0) = 1 the one of the least relative error
    p = fma(p, r, all(0.22764465f));
    p = fma(p, r, all(0.69511686f));
    p = fma(p, r, all(1.0f));
    return _mm512_scalef_ps(p, x);
#else
    return exp2(x);
#endif
}

LIUYI_INLINE Floats zero_unseen(Floats weights, Floats scores) {
#if defined(__AVX512F__)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(scores, all(kUnseen), _CMP_NEQ_UQ), weights);
#else
    return _mm256_and_ps(weights, _mm256_cmp_ps(scores, all(kUnseen), _CMP_NEQ_UQ));
#endif
}

// The vectors of a row of scores that hold keys low..high, in which the row sees the others not.
struct Seen {
    int low, high, begin, end;

    Seen(int low, int high) : low(low), high(high), begin(low / kWidth * kWidth), end((high + kWidth - 1) / kWidth * kWidth) {}
    bool partly(int key) const { return key < low || key + kWidth > high; }
};

// The highest score of a row; those that it does not see become kUnseen.
LIUYI_INLINE float highest(float* scores, const Seen& seen) {
    for (int key = seen.begin; key < seen.low; ++key) scores[key] = kUnseen;
    for (int key = seen.high; key < seen.end; ++key) scores[key] = kUnseen;
    Floats even = all(kUnseen), odd = all(kUnseen);
    int key = seen.begin;
    for (; key + 2 * kWidth <= seen.end; key += 2 * kWidth) {
        even = max(even, load(scores + key));
        odd = max(odd, load(scores + key + kWidth));
    }
    if (key < seen.end) even = max(even, load(scores + key));
    return largest(max(even, odd));
}

// Gives `put(key, weights)` the weights power(unit·score − most) of all keys, a vector at a time, in order where the row
// sees any; zero where it does not. Returns their sum.
template <class Power, class Put>
LIUYI_INLINE float soften(const float* scores, const Seen& seen, int keys, float unit, float most, const Power& power,
                          const Put& put) {
    for (int key = 0; key < seen.begin; key += kWidth) put(key, zero());
    Floats sums = zero();
    for (int key = seen.begin; key < seen.end; key += kWidth) {
        const Floats score = load(scores + key);
        Floats weights = power(fma(score, all(unit), all(-most)));
        if (seen.partly(key)) weights = zero_unseen(weights, score);
        sums = add(sums, weights);
        put(key, weights);
    }
    for (int key = seen.end; key < keys; key += kWidth) put(key, zero());
    return sum(sums);
}

// What a unit's rows got of a span; a total of 0 says that a row sees none of its keys.
struct Results {
    float most[kMostKernelRows], total[kMostKernelRows];
};

// What has been joined of some rows.
struct Joined {
    float* mixed;  // [rows][dim]
    float* most;   // [rows], and a vector more
    float* total;  // the same; 0 while nothing has been joined

    Joined from(int row, int dim) const { return {mixed + static_cast<size_t>(row) * dim, most + row, total + row}; }
    // The first that there is of some rows; their `mixed` is here already.
    void take(const Results& results, int rows) const {
        std::memcpy(most, results.most, rows * sizeof(float));
        std::memcpy(total, results.total, rows * sizeof(float));
    }
    void clear(int rows) const {
        for (int row = 0; row < rows; ++row) {
            most[row] = kUnseen;
            total[row] = 0;
        }
    }
};

LIUYI_INLINE void mix_in(float* into, const float* next, float old_weight, float new_weight, int dim) {
    for (int d = 0; d < dim; d += kWidth) {
        store(into + d, fma(load(next + d), all(new_weight), mul(load(into + d), all(old_weight))));
    }
}

LIUYI_INLINE void join(Partial& into, const Partial& next, int dim) {
    const float most = into.most > next.most ? into.most : next.most;
    alignas(64) float weights[kWidth] = {into.most - most, next.most - most};
    store(weights, exp2(load(weights)));
    mix_in(into.mixed, next.mixed, weights[0], weights[1], dim);
    into.total = into.total * weights[0] + next.total * weights[1];
    into.most = most;
}

// The same for some rows, `mixed` [rows][dim]; nothing has been joined into those whose total is 0.
LIUYI_INLINE void join_rows(const Joined& into, const float* mixed, const float* next_most, const float* next_total, int rows,
                            int dim) {
    alignas(64) float old_weights[kMostKernelRows], new_weights[kMostKernelRows], higher[kMostKernelRows];
    for (int row = 0; row < rows; row += kWidth) {
        const Floats before = load(into.most + row), after = load(next_most + row), top = max(before, after);
        store(old_weights + row, exp2(sub(before, top)));
        store(new_weights + row, exp2(sub(after, top)));
        store(higher + row, top);
    }
    for (int row = 0; row < rows; ++row) {
        if (next_total[row] == 0) continue;
        if (into.total[row] == 0) {
            std::memcpy(into.mixed + row * dim, mixed + row * dim, dim * sizeof(float));
            into.most[row] = next_most[row];
            into.total[row] = next_total[row];
            continue;
        }
        mix_in(into.mixed + row * dim, mixed + row * dim, old_weights[row], new_weights[row], dim);
        into.most[row] = higher[row];
        into.total[row] = into.total[row] * old_weights[row] + next_total[row] * new_weights[row];
    }
}

LIUYI_INLINE void finish(const Partial& done, int head_dim, float* out) {
    const Floats share = all(1.0f / done.total);
    for (int d = 0; d < head_dim; d += kWidth) {
        const int left = head_dim - d;
        const Floats mixed = mul(load(done.mixed + d), share);
        if (left >= kWidth) store(out + d, mixed);
        else store_first(out + d, mixed, left);
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
