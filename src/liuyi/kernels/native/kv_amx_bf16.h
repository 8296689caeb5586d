// Attention over keys and values in bfloat16 on the matrix unit (AMX).
//
// While it multiplies queries by the keys of one block, vectors turn the scores of the block before into weights: both
// take about as long, and overlap only where a few instructions of one follow a few of the other. So a row's weights must
// not wait for the highest score of the whole span. They are relative to the highest of the first block in which the row
// sees a key, which does as well unless a later score is far above it; then the span is done again with the highest of all.
// Either way a row's result depends on nothing but its own query and keys.
#pragma once

#include "kv_amx.h"
#include "kv_float.h"

namespace liuyi {
namespace amx {

// The attention of R rows over the keys in sight, of heads that are `Dim` wide, or of any width where it is 0: loops that
// are unrolled overlap better. Tiles 0–3 hold sums: [rows][32] of the first 16 rows, then of the others.
template <int R, int Dim>
class TileRows {
  public:
    // Of the R rows, `rows` are there.
    TileRows(AttentionTiles& tiles, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight, const Work& work,
             Results& results)
        : tiles_(tiles), there_(_bzhi_u32(~0u, rows)), queries_(queries), kv_(kv), sight_(sight), work_(work),
          results_(results), weights_(reinterpret_cast<uint16_t*>(work.packed)) {}

    void attend() {
        for (int row = 0; row < R; row += 16) store(results_.most + row, all(kUnseen));
        weigh_and_mix();
        const uint32_t above = rows_where<_CMP_NLE_UQ>(results_.total, kMostTotal);
        if (above == 0) return;
        for (int block = 0; block < sight_.blocks; ++block) {
            multiply_keys(block, [] {});
            score(block);
            raise(above);
        }
        weigh_and_mix();
    }

  private:
    static constexpr int kBlockWeights = kMostKernelRows * kBlockTokens;
    static constexpr int kRowsAtOnce = R < 32 || Dim > 64 ? 4 : 8;
    // So far below kUnseen that it weighs nothing beside it.
    static constexpr float kHidden = -3e38f;

    int dim() const { return Dim > 0 ? Dim : kv_.dim; }
    size_t query_bytes() const { return Dim > 0 ? 4 * Dim : kv_.query_bytes; }
    float* scores_of(int row) const { return work_.sums + row * kBlockTokens; }

    template <int comparison>
    LIUYI_INLINE uint32_t rows_where(const float* values, float than) const {
        uint32_t rows = 0;
        for (int row = 0; row < R; row += 16) {
            rows |= static_cast<uint32_t>(_mm512_cmp_ps_mask(load(values + row), all(than), comparison)) << row;
        }
        return rows & there_;
    }

    // Queries · the keys of a block; `meanwhile` is called between parts of it.
    template <class Meanwhile>
    LIUYI_INLINE void multiply_keys(int block, const Meanwhile& meanwhile) {
        const int bytes = 2 * dim(), depth = tile_depth(bytes);
        tiles_.set_depth(depth);
        clear_sums();
#pragma GCC unroll 4
        for (int d = 0; d < bytes; d += depth) {
            const uint8_t* keys = sight_.heads[block] + d * kBlockTokens;
            _tile_loadd(6, keys, 4 * kBlockTokens);
            _tile_loadd(7, keys + 64, 4 * kBlockTokens);
#pragma GCC unroll 2
            for (int term = 0; term < 2; ++term) {
                const uint8_t* rows = queries_ + term * bytes + d;
                _tile_loadd(4, rows, query_bytes());
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (R > 16) {
                    _tile_loadd(5, rows + 16 * query_bytes(), query_bytes());
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                settle();
                meanwhile();
            }
        }
    }

    // The sums in the tiles become the scores of a block, kHidden where a row does not see the key.
    void score(int block) {
        constexpr int kRow = kBlockTokens * sizeof(float);
        _tile_stored(0, scores_of(0), kRow);
        _tile_stored(1, scores_of(0) + 16, kRow);
        if constexpr (R > 16) {
            _tile_stored(2, scores_of(16), kRow);
            _tile_stored(3, scores_of(16) + 16, kRow);
        }
        settle();
        const int first = block * kBlockTokens;
        if (first >= sight_.low_of_all && first + kBlockTokens <= sight_.high_of_all) return;
        const auto ones = [](int count) { return _bzhi_u32(~0u, count < 0 ? 0 : count > 32 ? 32 : count); };
        for (int row = 0; row < R; ++row) {
            const uint32_t seen = ones(sight_.high[row] - first) & ~ones(sight_.low[row] - first);
            float* scores = scores_of(row);
            for (int half = 0; half < 2; ++half, scores += 16) {
                store(scores, _mm512_mask_mov_ps(all(kHidden), static_cast<__mmask16>(seen >> 16 * half), load(scores)));
            }
        }
    }

    // Scores that are higher than what some rows have become that.
    void raise(uint32_t rows) {
        for (int first = 0; first < R; first += 16) {
            Floats of_rows[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                const float* scores = scores_of(first + i % R);
                of_rows[i] = max(load(scores), load(scores + 16));
            }
            const Floats here = join_lanes(of_rows, [](Floats a, Floats b) { return max(a, b); });
            const Floats most = load(results_.most + first);
            store(results_.most + first, _mm512_mask_max_ps(most, static_cast<__mmask16>(rows >> first), most, here));
        }
    }

    // Turns scores into weights, for some of the rows that are left of a block.
    LIUYI_INLINE void soften() {
        if (row_ == R) return;
        const float *scores = scores_of(row_), *most = results_.most + row_;
        uint16_t* weights = softened_ + row_ * kBlockTokens;
        Floats* totals = totals_ + row_;
#pragma GCC unroll 8
        for (int i = 0; i < kRowsAtOnce; ++i) {
            const Floats first = short_exp2(sub(load(scores + i * kBlockTokens), all(most[i])));
            const Floats second = short_exp2(sub(load(scores + i * kBlockTokens + 16), all(most[i])));
            totals[i] = add(totals[i], add(first, second));
            _mm512_store_si512(weights + i * kBlockTokens, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
        }
        row_ += kRowsAtOnce;
        settle();
    }
    void soften_all() {
        while (row_ < R) soften();
    }

    void weigh_and_mix() {
        for (Floats& total : totals_) total = zero();
        row_ = R;
        for (int block = 0; block < sight_.blocks; ++block) {
            if (sight_.once) {
                ask_for(sight_.next(block), 2 * kBlockTokens * dim());
                ask_for(sight_.heads[block] + 2 * kBlockTokens * dim(), 2 * kBlockTokens * dim());
            }
            multiply_keys(block, [&] { soften(); });
            soften_all();
            score(block);
            const uint32_t unseen = rows_where<_CMP_EQ_OQ>(results_.most, kUnseen);
            if (unseen != 0) raise(unseen);
            row_ = 0;
            softened_ = weights_ + block * kBlockWeights;
        }
        tiles_.set_depth(2 * kBlockTokens);
        for (int column = 0; column < dim(); column += 32) mix(column);
        for (int row = 0; row < R; row += 16) {
            store(results_.total + row, join_lanes(totals_ + row, [](Floats a, Floats b) { return add(a, b); }));
        }
    }

    // Weights · 32 columns of the values; weights of the last block are made first.
    void mix(int column) {
        const int dim = this->dim();
        const bool wide = column + 16 < dim;
        clear_sums();
        for (int block = 0; block < sight_.blocks; ++block) {
            if (block + 1 < sight_.blocks) soften();
            else soften_all();
            const uint16_t* weights = weights_ + block * kBlockWeights;
            const uint16_t* v = FloatKv<uint16_t>::values(sight_.heads[block], dim) + 2 * column;
            _tile_loadd(4, weights, 2 * kBlockTokens);
            _tile_loadd(6, v, 4 * dim);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (R > 16) {
                _tile_loadd(5, weights + 16 * kBlockTokens, 2 * kBlockTokens);
                _tile_dpbf16ps(2, 5, 6);
            }
            if (wide) {
                _tile_loadd(7, v + 32, 4 * dim);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (R > 16) _tile_dpbf16ps(3, 5, 7);
            }
        }
        float* out = work_.mixed + column;
        const long bytes = dim * static_cast<long>(sizeof(float));
        _tile_stored(0, out, bytes);
        if constexpr (R > 16) _tile_stored(2, out + 16 * dim, bytes);
        if (wide) {
            _tile_stored(1, out + 16, bytes);
            if constexpr (R > 16) _tile_stored(3, out + 16 * dim + 16, bytes);
        }
        settle();
    }

    AttentionTiles& tiles_;
    const uint32_t there_;
    const uint8_t* queries_;
    const KvLayout& kv_;
    const Sight& sight_;
    const Work& work_;
    Results& results_;
    uint16_t* weights_;   // [blocks][32 rows][32]
    uint16_t* softened_;  // those that are being made
    int row_ = R;         // the first row that they are not there of
    Floats totals_[R < 16 ? 16 : R];
};

// Keys and values in bfloat16, weights rounded to it. A query is its nearest bfloat16 numbers, and then what these leave of
// it: rounded once, it would cost half as much accuracy again as rounding keys and values does.
struct Bf16TileKv : FloatKv<uint16_t> {
    static constexpr int kMostRows = 32;

    struct Session {
        explicit Session(int rows) : tiles(rows < 16 ? rows : 16) {}
        AttentionTiles tiles;
    };

    static void write_query(const float* q, int dim, uint8_t* query) {
        for (int d = 0; d < dim; d += kWidth) {
            const Floats exact = load(q + d);
            store_bf16(query + 2 * d, exact);
            store_bf16(query + 2 * (dim + d), sub(exact, load_bf16(query + 2 * d)));
        }
    }

    static void open_span(const Session&, const Sight&, int, const Work&) {}

    static void attend_span(Session& session, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight,
                            const Work& work, Results& results) {
        const auto attend = [&](auto of, auto dim) {
            TileRows<of.value, dim.value>(session.tiles, rows, queries, kv, sight, work, results).attend();
        };
        const auto attend_rows = [&](auto dim) {
            if (rows <= 4) attend(std::integral_constant<int, 4>{}, dim);
            else if (rows <= 16) attend(std::integral_constant<int, 16>{}, dim);
            else attend(std::integral_constant<int, 32>{}, dim);
        };
        if (kv.dim == 64) attend_rows(std::integral_constant<int, 64>{});
        else if (kv.dim == 128) attend_rows(std::integral_constant<int, 128>{});
        else attend_rows(std::integral_constant<int, 0>{});
    }
};

}  // namespace amx
}  // namespace liuyi
