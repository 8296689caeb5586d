// Attention over keys and values in int8 on the matrix unit (AMX). Sums of bytes are whole numbers and exact in any order:
// this gives the bits that AVX512 gives.
#pragma once

#include "kv_amx.h"
#include "kv_int8.h"

namespace liuyi {
namespace amx {

// The attention of up to 16 rows over the keys in sight, of heads that are `Dim` wide, or of any width where it is 0.
//
// Tiles 0 and 1 hold sums of high and of low digits, 2 and 3 those of the other half of the keys or columns. Of up to eight
// rows a tile has both digits, `together`: first the high ones of all rows, then the low ones. The unit takes a time by the
// rows that a tile has, so that is as much work in half as many products, and all of 64 columns are summed up at once.
template <int Dim, bool together>
class Int8Rows {
  public:
    Int8Rows(AttentionTiles& tiles, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight, const Work& work,
             Results& results)
        : tiles_(tiles), rows_(rows), queries_(queries), kv_(kv), sight_(sight), work_(work), results_(results),
          sums_(reinterpret_cast<int32_t*>(work.sums)) {
        for (int row = 0; row < rows; ++row) {
            const Int8Kv::QueryScale scale = Int8Kv::scale_of(queries + row * kv.query_bytes, kv.dim);
            units_[row] = scale.scale;
            _mm512_store_si512(starts_[together ? rows + row : row], all(scale.start));
            if (together) {
                _mm512_store_si512(starts_[row], all(0));
                const int8_t* digits = reinterpret_cast<const int8_t*>(queries + row * kv.query_bytes);
                std::memcpy(both_ + row * dim(), digits, dim());
                std::memcpy(both_ + (rows + row) * dim(), digits + dim(), dim());
            }
        }
        for (int row = rows; row < kRows; ++row) units_[row] = 0;
    }

    void attend() {
        store(results_.most, all(kUnseen));
        weigh();
        const uint32_t above = there() & _mm512_cmp_ps_mask(load(results_.total), all(kMostTotal), _CMP_NLE_UQ);
        if (above != 0) {
            for (int block = 0; block < sight_.blocks; ++block) {
                multiply_keys(block);
                keep_sums();
                raise(block, above);
            }
            weigh();
        }
        split();
        if constexpr (together) {
            for (int column = 0; column < dim(); column += 64) mix_together(column);
        } else {
            tiles_.set_depth(depth_of_weights());
            for (int column = 0; column < dim(); column += 32) mix(column);
        }
    }

  private:
    static constexpr int kRows = 16, kRowsAtOnce = together ? 2 : 4;
    static constexpr int kTile = 16 * 16;

    int dim() const { return Dim > 0 ? Dim : kv_.dim; }
    uint32_t there() const { return _bzhi_u32(~0u, rows_); }
    const float* scales_of(int block) const { return Int8Kv::scales(sight_.heads[block], dim()); }

    // Which keys of a block a row sees.
    LIUYI_INLINE uint32_t seen(int row, int block) const {
        const auto ones = [](int count) { return _bzhi_u32(~0u, count < 0 ? 0 : count > 32 ? 32 : count); };
        const int first = block * kBlockTokens;
        return ones(sight_.high[row] - first) & ~ones(sight_.low[row] - first);
    }
    bool seen_by_all(int block) const {
        const int first = block * kBlockTokens;
        return first >= sight_.low_of_all && first + kBlockTokens <= sight_.high_of_all;
    }

    // How many keys a tile of weights has: as many as can be, of values that were copied for that, else a block's.
    int depth_of_weights() const { return sight_.once ? kBlockTokens : 2 * kBlockTokens; }

    // Where the digits of a row's weights go.
    uint8_t* digits(int row, int digit) const {
        return together ? work_.packed + (digit * rows_ + row) * kSpanTokens : work_.digits(row, digit);
    }

    // Queries · the keys of a block.
    LIUYI_INLINE void multiply_keys(int block) {
        if constexpr (together) return multiply_keys_together(block);
        const int dim = this->dim(), depth = tile_depth(dim);
        const bool fresh = block == 0 || depth < dim;
        tiles_.set_depth(depth);
        _tile_zero(0);
        _tile_loadd(1, starts_, 64);
        _tile_zero(2);
        _tile_loadd(3, starts_, 64);
#pragma GCC unroll 2
        for (int d = 0; d < dim; d += depth) {
            const uint8_t* keys = sight_.heads[block] + d * kBlockTokens;
            if (fresh) {
                _tile_loadd(4, queries_ + d, kv_.query_bytes);
                _tile_loadd(5, queries_ + dim + d, kv_.query_bytes);
            }
            _tile_loadd(6, keys, 4 * kBlockTokens);
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 5, 6);
            _tile_loadd(7, keys + 64, 4 * kBlockTokens);
            _tile_dpbsud(2, 4, 7);
            _tile_dpbsud(3, 5, 7);
        }
    }

    LIUYI_INLINE void multiply_keys_together(int block) {
        const int dim = this->dim(), depth = tile_depth(dim);
        _tile_loadd(0, starts_, 64);
        _tile_loadd(1, starts_, 64);
#pragma GCC unroll 2
        for (int d = 0; d < dim; d += depth) {
            const uint8_t* keys = sight_.heads[block] + d * kBlockTokens;
            if (block == 0 || depth < dim) _tile_loadd(5, both_ + d, dim);
            _tile_loadd(6, keys, 4 * kBlockTokens);
            _tile_dpbsud(0, 5, 6);
            _tile_loadd(6, keys + 64, 4 * kBlockTokens);
            _tile_dpbsud(1, 5, 6);
        }
    }

    void keep_sums() {
        _tile_stored(0, sums_, 64);
        _tile_stored(1, sums_ + kTile, 64);
        if (!together) {
            _tile_stored(2, sums_ + 2 * kTile, 64);
            _tile_stored(3, sums_ + 3 * kTile, 64);
        }
        settle();
    }

    // What both digits add up to, of a row and half of the keys or columns.
    template <int bits>
    LIUYI_INLINE Floats whole(int row, int half) const {
        const int32_t* sums = sums_ + (together ? 1 : 2) * kTile * half + 16 * row;
        return to_floats(add(_mm512_slli_epi32(load_ints(sums), bits), load_ints(sums + (together ? 16 * rows_ : kTile))));
    }

    // Scores in the sums that are higher than what some rows have become that.
    void raise(int block, uint32_t rows) {
        const float* scales = scales_of(block);
        Floats of_rows[kRows];
        uint32_t seeing = 0;
        for (int row = 0; row < kRows; ++row) {
            const uint32_t keys = row < rows_ ? seen(row, block) : 0;
            seeing |= static_cast<uint32_t>(keys != 0) << row;
            const auto half = [&](int i) {
                const Floats scores = mul(whole<8>(row, i), load(scales + 16 * i));
                return _mm512_mask_mov_ps(all(kUnseen), static_cast<__mmask16>(keys >> 16 * i), scores);
            };
            of_rows[row] = max(half(0), half(1));
        }
        const Floats here = mul(join_lanes(of_rows, [](Floats a, Floats b) { return max(a, b); }), load(units_));
        const Floats most = load(results_.most);
        store(results_.most, _mm512_mask_max_ps(most, static_cast<__mmask16>(rows & seeing), most, here));
    }

    // Turns the sums of a block into weights times the scales of the values.
    LIUYI_INLINE void soften(int block) {
        if (seen_by_all(block)) soften_block<true>(block);
        else soften_block<false>(block);
    }
    template <bool whole_block>
    void soften_block(int block) {
        const float* scales = scales_of(block);
        const Floats key_scales[2] = {load(scales), load(scales + 16)};
        const Floats value_scales[2] = {load(scales + 32), load(scales + 48)};
        for (int first = 0; first < rows_; first += kRowsAtOnce) {
#pragma GCC unroll 4
            for (int row = first; row < first + kRowsAtOnce; ++row) {
                const Floats unit = all(units_[row]), most = all(results_.most[row]);
                const uint32_t keys = whole_block || row >= rows_ ? 0 : seen(row, block);
                float* out = work_.weights(row) + block * kBlockTokens;
                Floats total = totals_[row], top = tops_[row];
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const Floats scores = mul(whole<8>(row, half), key_scales[half]);
                    Floats weights = short_exp2(_mm512_fmsub_ps(scores, unit, most));
                    if (!whole_block) weights = _mm512_maskz_mov_ps(static_cast<__mmask16>(keys >> 16 * half), weights);
                    total = add(total, weights);
                    const Floats scaled = mul(weights, value_scales[half]);
                    top = max(top, scaled);
                    store(out + 16 * half, scaled);
                }
                totals_[row] = total;
                tops_[row] = top;
            }
        }
    }

    void weigh() {
        for (int row = 0; row < kRows; ++row) totals_[row] = tops_[row] = zero();
        if constexpr (together) tiles_.set_depths(kBlockTokens, tile_depth(dim()));
        for (int block = 0; block < sight_.blocks; ++block) {
            if (sight_.once) {
                ask_for(sight_.next(block), kBlockTokens * dim());
                ask_for(Int8Kv::values(sight_.heads[block], dim()), kBlockTokens * dim());
            }
            multiply_keys(block);
            if (block > 0) soften(block - 1);
            keep_sums();
            const uint32_t unseen = there() & _mm512_cmp_ps_mask(load(results_.most), all(kUnseen), _CMP_EQ_OQ);
            if (unseen != 0) raise(block, unseen);
        }
        soften(sight_.blocks - 1);
        store(results_.total, join_lanes(totals_, [](Floats a, Floats b) { return add(a, b); }));
    }

    // Weights become digits.
    void split() {
        const int keys = sight_.keys();
        alignas(64) float tops[kRows];
        store(tops, join_lanes(tops_, [](Floats a, Floats b) { return max(a, b); }));
        for (int row = 0; row < rows_; ++row) {
            float* weights = work_.weights(row);
            for (int key = keys; key % 64 != 0; key += 16) store(weights + key, zero());
            work_.scales[row] = Int8Kv::split(weights, keys, tops[row], digits(row, 0), digits(row, 1));
        }
        settle();
    }

    // Weights · 32 columns of the values.
    void mix(int column) {
        const int dim = this->dim(), depth = depth_of_weights();
        const bool wide = column + 16 < dim;
        clear_sums();
        for (int key = 0; key < sight_.keys(); key += depth) {
            const uint8_t* from = sight_.once ? Int8Kv::values(sight_.heads[key / kBlockTokens], dim) : work_.values + key * dim;
            const uint8_t* v = from + 4 * column;
            _tile_loadd(4, work_.digits(0, 0) + key, kSpanTokens);
            _tile_loadd(5, work_.digits(0, 1) + key, kSpanTokens);
            _tile_loadd(6, v, 4 * dim);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 5, 6);
            if (wide) {
                _tile_loadd(7, v + 64, 4 * dim);
                _tile_dpbusd(2, 4, 7);
                _tile_dpbusd(3, 5, 7);
            }
        }
        keep_sums();
        for (int row = 0; row < rows_; ++row) {
            float* out = work_.mixed + row * dim + column;
            const Floats scale = all(work_.scales[row]);
            store(out, mul(whole<7>(row, 0), scale));
            if (wide) store(out + 16, mul(whole<7>(row, 1), scale));
        }
    }

    // Weights · up to 64 columns of the values, 16 to a tile.
    void mix_together(int column) {
        const int dim = this->dim(), left = dim - column;
        clear_sums();
        for (int block = 0; block < sight_.blocks; ++block) {
            const uint8_t* v = Int8Kv::values(sight_.heads[block], dim) + 4 * column;
            _tile_loadd(4, work_.packed + block * kBlockTokens, kSpanTokens);
            _tile_loadd(7, v, 4 * dim);
            _tile_dpbusd(0, 4, 7);
            if (left > 16) {
                _tile_loadd(7, v + 64, 4 * dim);
                _tile_dpbusd(1, 4, 7);
            }
            if (left > 32) {
                _tile_loadd(7, v + 128, 4 * dim);
                _tile_dpbusd(2, 4, 7);
            }
            if (left > 48) {
                _tile_loadd(7, v + 192, 4 * dim);
                _tile_dpbusd(3, 4, 7);
            }
        }
        _tile_stored(0, sums_, 64);
        _tile_stored(1, sums_ + kTile, 64);
        _tile_stored(2, sums_ + 2 * kTile, 64);
        _tile_stored(3, sums_ + 3 * kTile, 64);
        settle();
        for (int row = 0; row < rows_; ++row) {
            float* out = work_.mixed + row * dim + column;
            const Floats scale = all(work_.scales[row]);
#pragma GCC unroll 4
            for (int tile = 0; tile < 4; ++tile) {
                if (16 * tile < left) store(out + 16 * tile, mul(whole<7>(row, tile), scale));
            }
        }
    }

    AttentionTiles& tiles_;
    const int rows_;
    const uint8_t* queries_;
    const KvLayout& kv_;
    const Sight& sight_;
    const Work& work_;
    Results& results_;
    int32_t* sums_;  // [4][16][16]
    alignas(64) int32_t starts_[kRows][16];  // of the low digits: takes the +128 of the keys out again
    alignas(64) int8_t both_[together ? kRows * kMostHeadDim : 1];  // the queries' digits
    alignas(64) float units_[kRows];
    Floats totals_[kRows], tops_[kRows];
};

struct Int8TileKv : Int8Kv {
    static constexpr int kMostRows = 16;
    static constexpr int kFewRows = 3;

    struct Session {
        explicit Session(int rows) : few(rows <= kFewRows), together(rows <= kMostRows / 2), tiles(together ? 2 * rows : rows) {}
        bool few;  // rows for which vectors are as fast, as when decoding; they give the same bits
        bool together;
        AttentionTiles tiles;
    };

    // Values of two blocks follow each other, so that a tile of weights is as deep as it can be.
    static void open_span(const Session& session, const Sight& sight, int dim, const Work& work) {
        if (session.few || session.together || sight.once) return;
        for (int block = 0; block < sight.blocks; ++block) {
            const uint8_t* from = values(sight.heads[block], dim);
            uint8_t* to = work.values + block * kBlockTokens * dim;
            for (int at = 0; at < kBlockTokens * dim; at += 64) _mm512_store_si512(to + at, load_ints(from + at));
        }
    }

    static void attend_span(Session& session, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight,
                            const Work& work, Results& results) {
        if (session.few) {
            NoSession none(rows);
            return Int8Kv::attend_span(none, rows, queries, kv, sight, work, results);
        }
        const auto attend = [&](auto dim) {
            if (session.together) Int8Rows<dim.value, true>(session.tiles, rows, queries, kv, sight, work, results).attend();
            else Int8Rows<dim.value, false>(session.tiles, rows, queries, kv, sight, work, results).attend();
        };
        if (kv.dim == 64) attend(std::integral_constant<int, 64>{});
        else if (kv.dim == 128) attend(std::integral_constant<int, 128>{});
        else attend(std::integral_constant<int, 0>{});
    }
};

}  // namespace amx
}  // namespace liuyi
