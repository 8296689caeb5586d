// Attention over keys and values in int8 on the matrix unit (AMX). Sums of bytes are whole numbers and exact in any order:
// this gives the bits that AVX512 gives.
#pragma once

#include "kv_amx.h"
#include "kv_int8.h"

namespace liuyi {
namespace amx {

struct Int8TileKv : Int8Kv {
    static constexpr int kMostRows = 16;
    static constexpr int kFewRows = 3;
    static constexpr int kWeightDepth = 64;

    struct Session {
        explicit Session(int rows) : few(rows <= kFewRows), tiles(rows) {}
        bool few;  // rows for which vectors are as fast, as when decoding; they give the same bits
        AttentionTiles tiles;
    };

    static void attend_span(Session& session, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight,
                            const Work& work, Results& results) {
        attend_in_steps<Int8TileKv>(session, rows, queries, kv, sight, work, results);
    }

    // Values of two blocks follow each other, so that a tile of weights is as deep as it can be.
    static void open_span(const Session& session, const Sight& sight, int dim, const Work& work) {
        if (session.few) return;
        for (int block = 0; block < sight.blocks; ++block) {
            const uint8_t* from = values(sight.heads[block], dim);
            uint8_t* to = work.values + block * kBlockTokens * dim;
            for (int at = 0; at < kBlockTokens * dim; at += 64) _mm512_store_si512(to + at, load_ints(from + at));
        }
    }

    static void score(Session& session, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight, const Work& work) {
        if (session.few) {
            NoSession none(rows);
            return Int8Kv::score(none, rows, queries, kv, sight, work);
        }
        const int dim = kv.dim, depth = tile_depth(dim);
        int32_t starts[kMostRows];
        for (int r = 0; r < rows; ++r) {
            const QueryScale scale = scale_of(queries + r * kv.query_bytes, dim);
            starts[r] = 256 * scale.high_start + scale.low_start;
        }
        session.tiles.set_depth(depth);
        int32_t* sums = reinterpret_cast<int32_t*>(work.sums);
        for (int block = 0; block < sight.blocks; ++block) {
            const uint8_t* head = sight.heads[block];
            const bool fresh = block == 0 || depth < dim;
            if (sight.once) ask_for(sight.next(block), kBlockTokens * dim);
            multiply_first(queries, kv.query_bytes, head, dim, depth, fresh);
            if (block > 0) {
                store_second(sums);
                to_scores(rows, starts, sums, scales(sight.heads[block - 1], dim), work.scores + (block - 1) * kBlockTokens);
            }
            multiply_second(queries, kv.query_bytes, head, dim, depth, depth < dim);
            store_first(sums);
        }
        store_second(sums);
        to_scores(rows, starts, sums, scales(sight.heads[sight.blocks - 1], dim), work.scores + (sight.blocks - 1) * kBlockTokens);
    }

    // Queries · the first 16 keys of a block, in tiles 0 (the high bytes) and 1 (the low ones).
    LIUYI_INLINE static void multiply_first(const uint8_t* queries, size_t query_bytes, const uint8_t* keys, int dim, int depth,
                                            bool fresh) {
        _tile_zero(0);
        _tile_zero(1);
        for (int d = 0; d < dim; d += depth) {
            if (fresh) {
                _tile_loadd(4, queries + d, query_bytes);
                _tile_loadd(5, queries + dim + d, query_bytes);
            }
            _tile_loadd(6, keys + d * kBlockTokens, 4 * kBlockTokens);
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 5, 6);
        }
    }
    // The same for the others, in tiles 2 and 3.
    LIUYI_INLINE static void multiply_second(const uint8_t* queries, size_t query_bytes, const uint8_t* keys, int dim, int depth,
                                             bool fresh) {
        _tile_zero(2);
        _tile_zero(3);
        for (int d = 0; d < dim; d += depth) {
            if (fresh) {
                _tile_loadd(4, queries + d, query_bytes);
                _tile_loadd(5, queries + dim + d, query_bytes);
            }
            _tile_loadd(7, keys + 64 + d * kBlockTokens, 4 * kBlockTokens);
            _tile_dpbsud(2, 4, 7);
            _tile_dpbsud(3, 5, 7);
        }
    }
    LIUYI_INLINE static void store_first(int32_t* sums) {
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + 512, 64);
    }
    LIUYI_INLINE static void store_second(int32_t* sums) {
        _tile_stored(2, sums + 256, 64);
        _tile_stored(3, sums + 768, 64);
    }

    LIUYI_INLINE static void to_scores(int rows, const int32_t* starts, const int32_t* sums, const float* scale, float* out) {
        const Floats first = load(scale), second = load(scale + 16);
        for (int r = 0; r < rows; ++r) {
            const Ints start = all(starts[r]);
            const auto whole = [&](int at) {
                return to_floats(add(add(_mm512_slli_epi32(load_ints(sums + at), 8), load_ints(sums + 512 + at)), start));
            };
            store(out + r * kSpanTokens, mul(whole(r * 16), first));
            store(out + r * kSpanTokens + 16, mul(whole(256 + r * 16), second));
        }
    }

    static void mix(Session& session, int rows, const Sight& sight, int dim, const Work& work) {
        if (session.few) {
            NoSession none(rows);
            return Int8Kv::mix(none, rows, sight, dim, work);
        }
        int32_t* sums = reinterpret_cast<int32_t*>(work.sums);
        settle();
        session.tiles.set_depth(kWeightDepth);
        for (int column = 0; column < dim; column += 32) {
            const bool both = column + 16 < dim;
            clear_sums();
            for (int key = 0; key < sight.keys(); key += kWeightDepth) {
                const uint8_t* v = work.values + key * dim + 4 * column;
                _tile_loadd(4, work.digits(0, 0) + key, kSpanTokens);
                _tile_loadd(5, work.digits(0, 1) + key, kSpanTokens);
                _tile_loadd(6, v, 4 * dim);
                _tile_dpbusd(0, 4, 6);
                _tile_dpbusd(2, 5, 6);
                if (both) {
                    _tile_loadd(7, v + 64, 4 * dim);
                    _tile_dpbusd(1, 4, 7);
                    _tile_dpbusd(3, 5, 7);
                }
            }
            _tile_stored(0, sums, 128);
            _tile_stored(1, sums + 16, 128);
            _tile_stored(2, sums + 512, 128);
            _tile_stored(3, sums + 528, 128);
            for (int r = 0; r < rows; ++r) {
                for (int c = 0; c < (both ? 32 : 16); c += 16) {
                    const int at = r * 32 + c;
                    const Ints whole = add(_mm512_slli_epi32(load_ints(sums + at), 7), load_ints(sums + 512 + at));
                    store(work.mixed + r * dim + column + c, mul(to_floats(whole), all(work.scales[r])));
                }
            }
        }
    }
};

}  // namespace amx
}  // namespace liuyi
