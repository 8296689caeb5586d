// What the formats of keys and values share. Each format is a struct with the same functions, against which forward.h and
// attention.h are written. A "query" below is one head of one token as the format wants it, `query_bytes` apart; `dim` is
// the padded head_dim.
//   turn   all queries and keys of a token, [heads][dim], before they are written; no product changes
//   write_query, write_key, write_value   to memory, from float32
//   ask_for_slot   for the memory that a token's key and value go to
//   open_span     what the rows of a unit need in common
//   attend_span   the softmax of rows over the keys in sight, and values mixed with it, to Work::mixed
// Formats that do this in steps, one after the other for all keys in sight, have these apart:
//   score   rows of queries · keys → Work::scores; times the row's `unit` they are the products
//   weigh   scores → weights of the values, and their sums
//   mix     weights · values → Work::mixed
#pragma once

#include <cstring>
#include <type_traits>

#include "softmax.h"
#include "span.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {

template <class Kv>
LIUYI_INLINE void attend_in_steps(typename Kv::Session& session, int rows, const uint8_t* queries, const KvLayout& kv,
                                  const Sight& sight, const Work& work, Results& results) {
    float units[kMostKernelRows];
    Kv::score(session, rows, queries, kv, sight, work);
    for (int r = 0; r < rows; ++r) {
        units[r] = Kv::unit(queries + r * kv.query_bytes, kv.dim);
        results.most[r] = units[r] * highest(work.scores + r * kSpanTokens, sight.seen(r));
    }
    Kv::weigh(rows, units, sight, kv.dim, work, results);
    Kv::mix(session, rows, sight, kv.dim, work);
}

// Calls f with the number of rows, 1..R, as a constant.
template <int R, class F>
LIUYI_INLINE void with_rows(int rows, const F& f) {
    if constexpr (R > 1) {
        if (rows < R) return with_rows<R - 1>(rows, f);
    }
    f(std::integral_constant<int, R>{});
}

// Formats that need nothing set up for a unit of work.
struct NoSession {
    explicit NoSession(int) {}
};

LIUYI_INLINE void ask_for_line(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// What a decoding step reads of the cache it reads once: a kernel with few rows asks for the next block of keys and for
// the values of this block while it computes.
struct Ahead {
    const uint8_t *keys, *values;
};

template <int R>
LIUYI_INLINE void ask_for(const Ahead& ahead, size_t offset) {
    if constexpr (R <= 4) {
        for (const uint8_t* p : {ahead.keys + offset, ahead.values + offset}) {
            _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(p + 64), _MM_HINT_T0);
        }
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
