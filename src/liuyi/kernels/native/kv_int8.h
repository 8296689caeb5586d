// Keys and values in int8: on vectors.
#pragma once

#include "kv.h"
#include "linear_dot.h"
#include "linear_rotate.h"

namespace liuyi {
namespace LIUYI_ISA {

// Keys and values in int8 with one scale for each token and head. Queries are taken in two bytes (16 bits) and
// probabilities in two times 7 bits, so that what is lost is the rounding of keys and values alone: in one byte, a span
// where one key takes nearly everything (the first token of many models) would round the rest of it to nothing.
struct Int8Kv {
    static constexpr int kMostRows = kWidth == 16 ? 6 : 2;
    using Session = NoSession;
    static void open_span(const NoSession&, const Sight&, int, const Work&) {}
    static void attend_span(NoSession& session, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight,
                            const Work& work, Results& results) {
        score(session, rows, queries, kv, sight, work);
        for (int r = 0; r < rows; ++r) weigh(r, unit(queries + r * kv.query_bytes, kv.dim), sight, kv.dim, work, results);
        mix(session, rows, sight, kv.dim, work);
    }

    // A query: [dim] high bytes, [dim] low bytes, then this.
    struct QueryScale {
        float scale;
        int32_t start;  // takes the +128 of the keys out of the low bytes' sum again
    };

    static uint8_t* values(uint8_t* head, int dim) { return head + kBlockTokens * dim; }
    static const uint8_t* values(const uint8_t* head, int dim) { return head + kBlockTokens * dim; }
    static float* scales(uint8_t* head, int dim) { return reinterpret_cast<float*>(head + 2 * kBlockTokens * dim); }
    static const float* scales(const uint8_t* head, int dim) {
        return reinterpret_cast<const float*>(head + 2 * kBlockTokens * dim);
    }

    LIUYI_INLINE static float largest_magnitude(const float* x, int dim) {
        Floats most = zero();
        for (int d = 0; d < dim; d += kWidth) most = max(most, abs(load(x + d)));
        return largest(most);
    }

    // Queries and keys are rotated alike before they are rounded, where a head is of whole groups of 64: their products
    // stay, and the few columns in which all keys are large no longer make the steps of the others coarse.
    static void turn(float* heads, int count, int dim) {
        if (dim % kRotated != 0) return;
        const int blocks = count * dim / kRotated;
        int block = 0;
        for (; block + 2 <= blocks; block += 2) rotate_two_blocks(heads + block * kRotated);
        if (block < blocks) rotate_block(heads + block * kRotated, heads + block * kRotated);
    }

    static void write_query(const float* q, int dim, uint8_t* query) {
        const float most = largest_magnitude(q, dim);
        const Floats inverse = all(most > 0 ? 32512.0f / most : 0.0f);
        int8_t* high = reinterpret_cast<int8_t*>(query);
        int8_t* low = high + dim;
        Ints total = all(0);
        for (int d = 0; d < dim; d += kWidth) {
            const Ints whole = to_ints(mul(load(q + d), inverse)), top = shift_right_signed<8>(add(whole, all(128)));
            store_bytes(high + d, top);
            store_bytes(low + d, sub(whole, shift_left<8>(top)));  // −128..127
            total = add(total, whole);
        }
        const QueryScale meta{most / 32512.0f, kWeightOffset * sum(total)};
        std::memcpy(query + 2 * dim, &meta, sizeof meta);
    }

    LIUYI_INLINE static QueryScale scale_of(const uint8_t* query, int dim) {
        QueryScale scale;
        std::memcpy(&scale, query + 2 * dim, sizeof scale);
        return scale;
    }
    static float unit(const uint8_t* query, int dim) { return scale_of(query, dim).scale; }

    LIUYI_INLINE static void round_row(const float* x, int dim, float* scale, int8_t* out) {
        const float most = largest_magnitude(x, dim);
        const Floats inverse = all(most > 0 ? 127.0f / most : 0.0f);
        *scale = most / 127.0f;
        for (int d = 0; d < dim; d += kWidth) store_bytes(out + d, to_ints(mul(load(x + d), inverse)));
    }

    static void ask_for_slot(const uint8_t* head, int dim, int slot) {
        const uint8_t *key = head + 4 * slot, *value = values(head, dim) + slot / 4 * 4 * dim;
        for (int at = 0; at < kBlockTokens * dim; at += 4 * kBlockTokens) ask_for_line(key + at);
        for (int at = 0; at < 4 * dim; at += 64) ask_for_line(value + at);
        ask_for_line(scales(head, dim) + slot);
        ask_for_line(scales(head, dim) + kBlockTokens + slot);
    }

    static void write_key(uint8_t* head, int dim, int slot, const float* k) {
        alignas(64) int8_t row[512];
        round_row(k, dim, scales(head, dim) + slot, row);
        for (int d = 0; d < dim; d += 4) {
            uint32_t four;
            std::memcpy(&four, row + d, 4);
            four ^= 0x80808080u;
            std::memcpy(head + d * kBlockTokens + 4 * slot, &four, 4);
        }
    }
    static void write_value(uint8_t* head, int dim, int slot, const float* v) {
        alignas(64) int8_t row[512];
        round_row(v, dim, scales(head, dim) + kBlockTokens + slot, row);
        uint8_t* quad = values(head, dim) + slot / 4 * 4 * dim + slot % 4;
        for (int d = 0; d < dim; d += kWidth) store_bytes_apart(quad + 4 * d, row + d);
    }

    template <int R>
    static void score_block(const uint8_t* queries, const KvLayout& kv, const Sight& sight, int block, float* out) {
        const uint8_t* head = sight.heads[block];
        const Ahead ahead{sight.next(block), values(head, kv.dim)};
        const int dim = kv.dim;
        for (int column = 0; column < kBlockTokens; column += 2 * kWidth) {
            Ints high[R][2], low[R][2];
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const QueryScale start = scale_of(queries + r * kv.query_bytes, dim);
                high[r][0] = high[r][1] = all(0);
                low[r][0] = low[r][1] = all(start.start);
            }
            const uint8_t* keys = head + 4 * column;
            for (int d = 0; d < dim; d += 4, keys += 4 * kBlockTokens) {
                ask_for<R>(ahead, d * kBlockTokens);
                const Ints first = load_ints(keys), second = load_ints(keys + 4 * kWidth);
#pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    const uint8_t* query = queries + r * kv.query_bytes + d;
                    const Ints top = all_ints(query), rest = all_ints(query + dim);
                    high[r][0] = dot_weights(high[r][0], first, top);
                    high[r][1] = dot_weights(high[r][1], second, top);
                    low[r][0] = dot_weights(low[r][0], first, rest);
                    low[r][1] = dot_weights(low[r][1], second, rest);
                }
            }
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
                for (int c = 0; c < 2; ++c) {
                    const Floats whole = to_floats(add(shift_left<8>(high[r][c]), low[r][c]));
                    const int at = column + c * kWidth;
                    store(out + r * kSpanTokens + at, mul(whole, load(scales(head, dim) + at)));
                }
            }
        }
    }

    static void score(NoSession&, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight, const Work& work) {
        with_rows<kMostRows>(rows, [&](auto constant) {
            for (int block = 0; block < sight.blocks; ++block) {
                score_block<constant.value>(queries, kv, sight, block, work.scores + block * kBlockTokens);
            }
        });
    }

    // The highest score of the first block in which a row sees a key.
    LIUYI_INLINE static float highest_of_first(const float* scores, const Seen& seen) {
        const int end = (seen.low / kBlockTokens + 1) * kBlockTokens;
        Floats most = all(kUnseen);
        for (int key = seen.begin; key < end && key < seen.end; key += kWidth) most = max(most, load(scores + key));
        return largest(most);
    }

    // Weights times the scales of the values, in two digits of 7 bits; Work::scales makes them what they were. Weights are
    // relative to the highest score of the first block or, where they add up to too much, of all: the matrix unit can have
    // that of the first one early.
    static void weigh(int row, float unit, const Sight& sight, int dim, const Work& work, Results& results) {
        float *scores = work.scores + row * kSpanTokens, *weights = work.weights(row);
        const Seen seen = sight.seen(row);
        Floats top;
        const auto put = [&](int key, Floats weight) {
            const float* scale = scales(sight.heads[key / kBlockTokens], dim) + kBlockTokens + key % kBlockTokens;
            const Floats scaled = mul(weight, load(scale));
            top = max(top, scaled);
            store(weights + key, scaled);
        };
        const float most = highest(scores, seen);
        for (const float from : {highest_of_first(scores, seen), most}) {
            top = zero();
            results.most[row] = unit * from;
            results.total[row] = soften(scores, seen, sight.keys(), unit, results.most[row], short_exp2, put);
            if (results.total[row] <= kMostTotal) break;
        }
        for (int key = sight.keys(); key % 64 != 0; key += kWidth) store(weights + key, zero());
        work.scales[row] = split(weights, sight.keys(), largest(top), work.digits(row, 0), work.digits(row, 1));
    }

    // Returns what makes numbers of two digits weights again, of which `top` is the highest.
    LIUYI_INLINE static float split(const float* weights, int keys, float top, uint8_t* high, uint8_t* low) {
        const Floats inverse = all(top > 0 ? 16383.0f / top : 0.0f);
        for (int key = 0; key < keys; key += 64) split_64(weights + key, inverse, high + key, low + key);
        return top / 16383.0f;
    }

    LIUYI_INLINE static void split_64(const float* weights, Floats inverse, uint8_t* high, uint8_t* low) {
        const auto whole = [&](int key) { return to_ints(mul(load(weights + key), inverse)); };
#if defined(__AVX512F__)
        const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), seven = _mm512_set1_epi16(127);
        const Ints a = _mm512_packs_epi32(whole(0), whole(16)), b = _mm512_packs_epi32(whole(32), whole(48));
        const Ints tops = _mm512_packus_epi16(_mm512_srli_epi16(a, 7), _mm512_srli_epi16(b, 7));
        const Ints rests = _mm512_packus_epi16(_mm512_and_si512(a, seven), _mm512_and_si512(b, seven));
        _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, tops));
        _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, rests));
#else
        for (int key = 0; key < 64; key += kWidth) {
            const Ints v = whole(key);
            store_bytes(reinterpret_cast<int8_t*>(high + key), shift_right<7>(v));
            store_bytes(reinterpret_cast<int8_t*>(low + key), bits_and(v, all(127)));
        }
#endif
    }

    template <int R, int C>
    LIUYI_INLINE static void mix_columns(const Sight& sight, int dim, int column, const Work& work) {
        Ints high[R][C], low[R][C];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) high[r][c] = low[r][c] = all(0);
        }
        for (int block = 0; block < sight.blocks; ++block) {
            const uint8_t* v = values(sight.heads[block], dim) + 4 * column;
            for (int token = block * kBlockTokens; token < (block + 1) * kBlockTokens; token += 4, v += 4 * dim) {
                Ints four[C];
#pragma GCC unroll 2
                for (int c = 0; c < C; ++c) four[c] = load_ints(v + 4 * c * kWidth);
#pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    const Ints top = all_ints(work.digits(r, 0) + token), rest = all_ints(work.digits(r, 1) + token);
#pragma GCC unroll 2
                    for (int c = 0; c < C; ++c) {
                        high[r][c] = dot_unsigned(high[r][c], top, four[c]);
                        low[r][c] = dot_unsigned(low[r][c], rest, four[c]);
                    }
                }
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) {
                const Floats whole = fma(to_floats(high[r][c]), all(128.0f), to_floats(low[r][c]));
                store(work.mixed + r * dim + column + c * kWidth, mul(whole, all(work.scales[r])));
            }
        }
    }

    template <int R>
    static void mix_rows(const Sight& sight, int dim, const Work& work) {
        int column = 0;
        for (; column + 2 * kWidth <= dim; column += 2 * kWidth) mix_columns<R, 2>(sight, dim, column, work);
        if (column < dim) mix_columns<R, 1>(sight, dim, column, work);
    }

    static void mix(NoSession&, int rows, const Sight& sight, int dim, const Work& work) {
        with_rows<kMostRows>(rows, [&](auto constant) { mix_rows<constant.value>(sight, dim, work); });
    }
};

}  // namespace LIUYI_ISA
}  // namespace liuyi
