// Keys and values in float32, or in bfloat16 that is widened: on vectors.
#pragma once

#include "kv.h"

namespace liuyi {
namespace LIUYI_ISA {

// Float formats differ in how two neighbouring rows of a matrix [depth][width] lie in memory.
template <class T>
struct FloatPairs;

template <>
struct FloatPairs<float> {
    LIUYI_INLINE static void load_pair(const float* block, int width, int pair, int column, Floats& first, Floats& second) {
        first = load(block + 2 * pair * width + column);
        second = load(block + (2 * pair + 1) * width + column);
    }
    static void write_column(float* block, int width, int column, const float* x, int count) {
        for (int row = 0; row < count; ++row) block[row * width + column] = x[row];
    }
    static void write_row(float* block, int width, int row, const float* x) {
        std::memcpy(block + row * width, x, width * sizeof(float));
    }
};

template <>
struct FloatPairs<uint16_t> {
    LIUYI_INLINE static void load_pair(const uint16_t* block, int width, int pair, int column, Floats& first, Floats& second) {
        const Ints words = load_ints(block + 2 * (pair * width + column));
        first = first_bf16(words);
        second = second_bf16(words);
    }
    static void write_column(uint16_t* block, int width, int column, const float* x, int count) {
        for (int row = 0; row < count; row += kWidth) {
            uint16_t rounded[kWidth];
            store_bf16(rounded, load(x + row));
            for (int i = 0; i < kWidth; i += 2) {
                std::memcpy(block + (row + i) * width + 2 * column, rounded + i, 2 * sizeof(uint16_t));
            }
        }
    }
    static void write_row(uint16_t* block, int width, int row, const float* x) {
        uint16_t* first = block + row / 2 * 2 * width + row % 2;
        for (int column = 0; column < width; column += kWidth) store_bf16_apart(first + 2 * column, load(x + column));
    }
};

// Keys and values in float32 or bfloat16; queries and probabilities stay in float32.
template <class T>
struct FloatKv {
    static constexpr int kMostRows = kWidth == 16 ? 12 : 4;
    using Session = NoSession;
    using Pairs = FloatPairs<T>;

    static void open_span(const NoSession&, const Sight&, int, const Work&) {}
    static void attend_span(NoSession& session, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight,
                            const Work& work, Results& results) {
        attend_in_steps<FloatKv>(session, rows, queries, kv, sight, work, results);
    }

    static T* values(uint8_t* head, int dim) { return reinterpret_cast<T*>(head) + kBlockTokens * dim; }
    static const T* values(const uint8_t* head, int dim) { return reinterpret_cast<const T*>(head) + kBlockTokens * dim; }

    static void turn(float*, int, int) {}
    static void write_query(const float* q, int dim, uint8_t* query) { std::memcpy(query, q, dim * sizeof(float)); }
    static float unit(const uint8_t*, int) { return 1.0f; }

    static void write_key(uint8_t* head, int dim, int slot, const float* k) {
        Pairs::write_column(reinterpret_cast<T*>(head), kBlockTokens, slot, k, dim);
    }
    static void ask_for_slot(const uint8_t* head, int dim, int slot) {
        constexpr int together = 4 / sizeof(T);  // rows of keys that lie side by side
        const T* keys = reinterpret_cast<const T*>(head) + together * slot;
        for (int d = 0; d < dim; d += together) ask_for_line(keys + d * kBlockTokens);
        const T* row = values(head, dim) + slot / together * together * dim;
        for (int column = 0; column < together * dim; column += 64 / sizeof(T)) ask_for_line(row + column);
    }
    static void write_value(uint8_t* head, int dim, int slot, const float* v) {
        Pairs::write_row(values(head, dim), dim, slot, v);
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
    static void score_block(const uint8_t* queries, const KvLayout& kv, const Sight& sight, int block, float* out) {
        const uint8_t* head = sight.heads[block];
        const Ahead ahead{sight.next(block), reinterpret_cast<const uint8_t*>(values(head, kv.dim))};
        for (int column = 0; column < kBlockTokens; column += 2 * kWidth) {
            Floats sums[R][2];
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = zero();
            accumulate<R, 2>(reinterpret_cast<const float*>(queries), kv.query_bytes / sizeof(float),
                             reinterpret_cast<const T*>(head), kBlockTokens, column, kv.dim / 2, &ahead, sums);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                store(out + r * kSpanTokens + column, sums[r][0]);
                store(out + r * kSpanTokens + column + kWidth, sums[r][1]);
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

    static void weigh(int rows, const float* units, const Sight& sight, int, const Work& work, Results& results) {
        for (int r = 0; r < rows; ++r) {
            float* row = work.scores + r * kSpanTokens;
            const auto put = [&](int key, Floats weight) { store(row + key, weight); };
            results.total[r] = soften(row, sight.seen(r), sight.keys(), units[r], results.most[r], exp2, put);
        }
    }

    template <int R, int C>
    LIUYI_INLINE static void mix_columns(const float* weights, const Sight& sight, int dim, int column, float* out) {
        Floats sums[R][C];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) sums[r][c] = zero();
        }
        for (int block = 0; block < sight.blocks; ++block) {
            accumulate<R, C>(weights + block * kBlockTokens, kSpanTokens, values(sight.heads[block], dim), dim, column,
                             kBlockTokens / 2, nullptr, sums);
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int c = 0; c < C; ++c) store(out + r * dim + column + c * kWidth, sums[r][c]);
        }
    }

    template <int R>
    static void mix_rows(const Sight& sight, int dim, const Work& work) {
        int column = 0;
        for (; column + 2 * kWidth <= dim; column += 2 * kWidth) {
            mix_columns<R, 2>(work.scores, sight, dim, column, work.mixed);
        }
        if (column < dim) mix_columns<R, 1>(work.scores, sight, dim, column, work.mixed);
    }

    static void mix(NoSession&, int rows, const Sight& sight, int dim, const Work& work) {
        with_rows<kMostRows>(rows, [&](auto constant) { mix_rows<constant.value>(sight, dim, work); });
    }
};

}  // namespace LIUYI_ISA
}  // namespace liuyi
