// Keys and values in each format: writing them, and the two products of attention for a few query rows.
//
// Each format is a struct with the same functions; attention.h is written against them. A "query" below is one head of
// one token as the format wants it, `query_bytes` apart; `dim` is the padded head_dim.
//   scores<R>   R query rows · the 32 keys of a block                 → float32 [R][32], `stride` apart
//   mix<R>      R rows of probabilities · the values of some blocks   → float32 [R][dim]
#pragma once

#include <cstring>

#include "linear_dot.h"
#include "linear_rotate.h"
#include "simd.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {

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

// Float formats differ in how two neighbouring rows of a matrix [depth][width] lie in memory.
template <class T>
struct FloatPairs;

template <>
struct FloatPairs<float> {
    LIUYI_INLINE static void load_pair(const float* block, int width, int pair, int column, Floats& first, Floats& second) {
        first = load(block + 2 * pair * width + column);
        second = load(block + (2 * pair + 1) * width + column);
    }
    LIUYI_INLINE static float* at(float* block, int width, int row, int column) { return block + row * width + column; }
    LIUYI_INLINE static float of(float x) { return x; }
};

template <>
struct FloatPairs<uint16_t> {
    LIUYI_INLINE static void load_pair(const uint16_t* block, int width, int pair, int column, Floats& first, Floats& second) {
        const Ints words = load_ints(block + 2 * (pair * width + column));
        first = first_bf16(words);
        second = second_bf16(words);
    }
    LIUYI_INLINE static uint16_t* at(uint16_t* block, int width, int row, int column) {
        return block + 2 * (row / 2 * width + column) + row % 2;
    }
    LIUYI_INLINE static uint16_t of(float x) { return to_bf16(x); }
};

// Keys and values in float32 or bfloat16; queries and probabilities stay in float32.
template <class T>
struct FloatKv {
    static constexpr int kMostRows = kWidth == 16 ? 12 : 4;
    using Pairs = FloatPairs<T>;

    static T* values(uint8_t* head, int dim) { return reinterpret_cast<T*>(head) + kBlockTokens * dim; }
    static const T* values(const uint8_t* head, int dim) { return reinterpret_cast<const T*>(head) + kBlockTokens * dim; }

    static void write_query(const float* q, int dim, uint8_t* query) { std::memcpy(query, q, dim * sizeof(float)); }

    static void write_key(uint8_t* head, int dim, int slot, const float* k) {
        for (int d = 0; d < dim; ++d) *Pairs::at(reinterpret_cast<T*>(head), kBlockTokens, d, slot) = Pairs::of(k[d]);
    }
    static void write_value(uint8_t* head, int dim, int slot, const float* v) {
        for (int d = 0; d < dim; ++d) *Pairs::at(values(head, dim), dim, slot, d) = Pairs::of(v[d]);
    }

    // sums[r][c] += rows[r][2·pairs] · block, columns from `column`.
    template <int R, int C>
    LIUYI_INLINE static void accumulate(const float* rows, size_t stride, const T* block, int width, int column, int pairs,
                                        const Ahead* ahead, Floats (&sums)[R][C]) {
        for (int pair = 0; pair < pairs; ++pair) {
            if (ahead != nullptr) ask_for<R>(*ahead, 2 * pair * width * sizeof(T));
            Floats first[C], second[C];
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) Pairs::load_pair(block, width, pair, column + c * kWidth, first[c], second[c]);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const Floats x = all(rows[r * stride + 2 * pair]), y = all(rows[r * stride + 2 * pair + 1]);
#pragma GCC unroll 2
                for (int c = 0; c < C; ++c) sums[r][c] = fma(y, second[c], fma(x, first[c], sums[r][c]));
            }
        }
    }

    template <int R>
    static void scores(const uint8_t* queries, size_t query_bytes, const uint8_t* head, int dim, const Ahead& ahead,
                       float* out, size_t stride) {
        for (int column = 0; column < kBlockTokens; column += 2 * kWidth) {
            Floats sums[R][2];
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = zero();
            accumulate<R, 2>(reinterpret_cast<const float*>(queries), query_bytes / sizeof(float),
                             reinterpret_cast<const T*>(head), kBlockTokens, column, dim / 2, &ahead, sums);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                store(out + r * stride + column, sums[r][0]);
                store(out + r * stride + column + kWidth, sums[r][1]);
            }
        }
    }

    template <int R, int C>
    LIUYI_INLINE static void mix_columns(const float* p, size_t stride, const uint8_t* const* heads, int blocks, int dim,
                                         int column, float* out) {
        Floats sums[R][C];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) sums[r][c] = zero();
        }
        for (int block = 0; block < blocks; ++block) {
            accumulate<R, C>(p + block * kBlockTokens, stride, values(heads[block], dim), dim, column, kBlockTokens / 2, nullptr, sums);
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) store(out + r * dim + column + c * kWidth, sums[r][c]);
        }
    }

    // p [R][blocks · 32] float32, zero where a row sees no key.
    template <int R>
    static void mix(float* p, size_t stride, const uint8_t* const* heads, int blocks, int dim, uint8_t*, float* out) {
        int column = 0;
        for (; column + 2 * kWidth <= dim; column += 2 * kWidth) mix_columns<R, 2>(p, stride, heads, blocks, dim, column, out);
        if (column < dim) mix_columns<R, 1>(p, stride, heads, blocks, dim, column, out);
    }
};

// Keys and values in int8 with one scale for each token and head. Queries are taken in two bytes (16 bits) and
// probabilities in two times 7 bits, so that what is lost is the rounding of keys and values alone: in one byte, a span
// where one key takes nearly everything (the first token of many models) would round the rest of it to nothing.
struct Int8Kv {
    static constexpr int kMostRows = kWidth == 16 ? 6 : 2;
    // A query: [dim] high bytes, [dim] low bytes, then this.
    struct QueryScale {
        float scale;
        int32_t high_start, low_start;  // take the +128 of the keys out again
        int32_t unused;
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
    LIUYI_INLINE static const float* rotated(const float* x, int dim, float* space) {
        if (dim % kRotated != 0) return x;
        for (int d = 0; d < dim; d += kRotated) rotate_group(x + d, kRotated, space + d);
        return space;
    }

    static void write_query(const float* q, int dim, uint8_t* query) {
        alignas(64) float space[512];
        q = rotated(q, dim, space);
        const float most = largest_magnitude(q, dim);
        const float inverse = most > 0 ? 32512.0f / most : 0.0f;
        int8_t* high = reinterpret_cast<int8_t*>(query);
        int8_t* low = high + dim;
        Ints high_sum = all(0), low_sum = all(0);
        for (int d = 0; d < dim; d += kWidth) {
            const Floats whole = nearest(mul(load(q + d), all(inverse)));
            const Floats top = nearest(mul(add(whole, all(0.5f)), all(1.0f / 256.0f)));  // the rest is in −128..127
            const Ints first = to_ints(top), rest = to_ints(fma(top, all(-256.0f), whole));
            store_bytes(high + d, first);
            store_bytes(low + d, rest);
            high_sum = add(high_sum, first);
            low_sum = add(low_sum, rest);
        }
        const QueryScale meta{most / 32512.0f, kWeightOffset * sum(high_sum), kWeightOffset * sum(low_sum), 0};
        std::memcpy(query + 2 * dim, &meta, sizeof meta);
    }

    LIUYI_INLINE static void round_row(const float* x, int dim, float* scale, int8_t* out) {
        const float most = largest_magnitude(x, dim);
        const Floats inverse = all(most > 0 ? 127.0f / most : 0.0f);
        *scale = most / 127.0f;
        for (int d = 0; d < dim; d += kWidth) store_bytes(out + d, to_ints(mul(load(x + d), inverse)));
    }

    static void write_key(uint8_t* head, int dim, int slot, const float* k) {
        alignas(64) float space[512];
        alignas(64) int8_t row[512];
        round_row(rotated(k, dim, space), dim, scales(head, dim) + slot, row);
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
        for (int d = 0; d < dim; ++d) quad[4 * d] = static_cast<uint8_t>(row[d]);
    }

    template <int R>
    static void scores(const uint8_t* queries, size_t query_bytes, const uint8_t* head, int dim, const Ahead& ahead,
                       float* out, size_t stride) {
        for (int column = 0; column < kBlockTokens; column += 2 * kWidth) {
            Ints high[R][2], low[R][2];
            float scale[R];
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                QueryScale meta;
                std::memcpy(&meta, queries + r * query_bytes + 2 * dim, sizeof meta);
                high[r][0] = high[r][1] = all(meta.high_start);
                low[r][0] = low[r][1] = all(meta.low_start);
                scale[r] = meta.scale;
            }
            const uint8_t* keys = head + 4 * column;
            for (int d = 0; d < dim; d += 4, keys += 4 * kBlockTokens) {
                ask_for<R>(ahead, d * kBlockTokens);
                const Ints first = load_ints(keys), second = load_ints(keys + 4 * kWidth);
#pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    const Ints top = all_ints(queries + r * query_bytes + d), rest = all_ints(queries + r * query_bytes + dim + d);
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
                    const Floats whole = fma(to_floats(high[r][c]), all(256.0f), to_floats(low[r][c]));
                    const int at = column + c * kWidth;
                    store(out + r * stride + at, mul(mul(whole, all(scale[r])), load(scales(head, dim) + at)));
                }
            }
        }
    }

    // Probabilities times the scales of the values, in two digits, with one scale for the row.
    LIUYI_INLINE static float split_row(float* p, const uint8_t* const* heads, int blocks, int dim, uint8_t* high, uint8_t* low) {
        Floats most = zero();
        for (int at = 0; at < blocks * kBlockTokens; at += kWidth) {
            const float* scale = scales(heads[at / kBlockTokens], dim) + kBlockTokens + at % kBlockTokens;
            const Floats scaled = mul(load(p + at), load(scale));
            most = max(most, scaled);
            store(p + at, scaled);
        }
        const float top = largest(most);
        const Floats inverse = all(top > 0 ? 16383.0f / top : 0.0f);
        for (int at = 0; at < blocks * kBlockTokens; at += kWidth) {
            store_digits(high + at, low + at, to_ints(mul(load(p + at), inverse)));
        }
        return top / 16383.0f;
    }

    LIUYI_INLINE static void store_digits(uint8_t* high, uint8_t* low, Ints v) {
        store_bytes(reinterpret_cast<int8_t*>(high), shift_right<7>(v));
        store_bytes(reinterpret_cast<int8_t*>(low), bits_and(v, all(127)));
    }

    template <int R, int C>
    LIUYI_INLINE static void mix_columns(const uint8_t* high_rows, const uint8_t* low_rows, const float (&scale)[R],
                                         const uint8_t* const* heads, int blocks, int dim, int column, float* out) {
        Ints high[R][C], low[R][C];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) high[r][c] = low[r][c] = all(0);
        }
        for (int block = 0; block < blocks; ++block) {
            const uint8_t* v = values(heads[block], dim) + 4 * column;
            for (int token = block * kBlockTokens; token < (block + 1) * kBlockTokens; token += 4, v += 4 * dim) {
                Ints four[C];
#pragma GCC unroll 2
                for (int c = 0; c < C; ++c) four[c] = load_ints(v + 4 * c * kWidth);
#pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    const Ints top = all_ints(high_rows + r * kSpanTokens + token);
                    const Ints rest = all_ints(low_rows + r * kSpanTokens + token);
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
                store(out + r * dim + column + c * kWidth, mul(whole, all(scale[r])));
            }
        }
    }

    // `digits`: 2 · R · 256 bytes of scratch.
    template <int R>
    static void mix(float* p, size_t stride, const uint8_t* const* heads, int blocks, int dim, uint8_t* digits, float* out) {
        float scale[R];
        uint8_t *high = digits, *low = digits + R * kSpanTokens;
        for (int r = 0; r < R; ++r) {
            scale[r] = split_row(p + r * stride, heads, blocks, dim, high + r * kSpanTokens, low + r * kSpanTokens);
        }
        int column = 0;
        for (; column + 2 * kWidth <= dim; column += 2 * kWidth) mix_columns<R, 2>(high, low, scale, heads, blocks, dim, column, out);
        if (column < dim) mix_columns<R, 1>(high, low, scale, heads, blocks, dim, column, out);
    }
};

}  // namespace LIUYI_ISA
}  // namespace liuyi
