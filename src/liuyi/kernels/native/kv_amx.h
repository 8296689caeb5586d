// The products of attention on the matrix unit (AMX), for keys and values in int8 and in bfloat16.
//
// A block of keys, and one of values, lies in the cache just as the unit wants its right operand, so tiles are loaded from
// where they are. Sums of bytes are whole numbers and exact in any order: int8 gives the bits that AVX512 gives. In
// bfloat16 weights are rounded, and one arithmetic serves any number of rows.
#pragma once

#include "kv.h"
#include "tiles.h"

namespace liuyi {
namespace amx {

// Tiles 0–3 hold sums [rows][16], 4 and 5 left operands [rows] of `depth` bytes, 6 and 7 right ones, [depth / 4][16][4 bytes].
class AttentionTiles {
  public:
    explicit AttentionTiles(int rows) : rows_(rows) {}
    ~AttentionTiles() { _tile_release(); }
    AttentionTiles(const AttentionTiles&) = delete;
    AttentionTiles& operator=(const AttentionTiles&) = delete;

    void set_depth(int depth) {
        if (depth == depth_) return;
        depth_ = depth;
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int tile = 0; tile < 8; ++tile) {
            shape.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows_ : depth / 4);
            shape.row_bytes[tile] = static_cast<uint16_t>(tile < 4 || tile > 5 ? 64 : depth);
        }
        asm volatile("" : : "r"(&shape) : "memory");  // gcc knows of the first bytes only that they are read
        _tile_loadconfig(&shape);
    }

  private:
    const int rows_;
    int depth_ = 0;
};

// The widest tile of rows of so many bytes.
LIUYI_INLINE int tile_depth(int bytes) { return bytes % 64 == 0 ? 64 : bytes % 32 == 0 ? 32 : 16; }

// The compiler does not know that tiles read memory: what was stored before must be there.
LIUYI_INLINE void settle() { asm volatile("" ::: "memory"); }

LIUYI_INLINE void ask_for(const uint8_t* from, int bytes) {
    for (int at = 0; at < bytes; at += 64) _mm_prefetch(reinterpret_cast<const char*>(from + at), _MM_HINT_T0);
}

struct Int8TileKv : Int8Kv {
    static constexpr int kMostRows = 16;
    static constexpr int kFewRows = 3;
    static constexpr int kWeightDepth = 64;

    struct Session {
        explicit Session(int rows) : few(rows <= kFewRows), tiles(rows) {}
        bool few;  // rows for which vectors are as fast, as when decoding; they give the same bits
        AttentionTiles tiles;
    };

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

    // Two tiles of rows, or one.
    template <bool two>
    LIUYI_INLINE static void score_rows(const uint8_t* queries, const KvLayout& kv, const Sight& sight, const Work& work) {
        const int bytes = 2 * kv.dim, depth = tile_depth(bytes);
        const uint8_t* more = queries + 16 * kv.query_bytes;
        for (int block = 0; block < sight.blocks; ++block) {
            const uint8_t* head = sight.heads[block];
            if (sight.once) {
                ask_for(sight.next(block), kBlockTokens * bytes);
                ask_for(head + kBlockTokens * bytes, kBlockTokens * bytes);
            }
            clear_sums();
            for (int d = 0; d < bytes; d += depth) {
                const uint8_t* keys = head + d * kBlockTokens;
                _tile_loadd(4, queries + d, kv.query_bytes);
                _tile_loadd(6, keys, 4 * kBlockTokens);
                _tile_loadd(7, keys + 64, 4 * kBlockTokens);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(4, queries + bytes + d, kv.query_bytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (two) {
                    _tile_loadd(5, more + d, kv.query_bytes);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                    _tile_loadd(5, more + bytes + d, kv.query_bytes);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            store_sums<two>(work.scores + block * kBlockTokens, kSpanTokens);
        }
    }

    static void score(Session& session, int rows, const uint8_t* queries, const KvLayout& kv, const Sight& sight, const Work& work) {
        session.tiles.set_depth(tile_depth(2 * kv.dim));
        if (rows > 16) score_rows<true>(queries, kv, sight, work);
        else score_rows<false>(queries, kv, sight, work);
    }

    template <bool two>
    LIUYI_INLINE static void store_sums(float* to, int stride) {
        const long bytes = stride * static_cast<long>(sizeof(float));
        _tile_stored(0, to, bytes);
        _tile_stored(1, to + 16, bytes);
        if constexpr (two) {
            _tile_stored(2, to + 16 * stride, bytes);
            _tile_stored(3, to + 16 * stride + 16, bytes);
        }
    }

    static void weigh(int rows, const float*, const Sight& sight, int, const Work& work, Results& results) {
        for (int r = 0; r < rows; ++r) {
            uint16_t* out = reinterpret_cast<uint16_t*>(work.packed) + r * kSpanTokens;
            const auto put = [&](int key, Floats weights) { store_bf16(out + key, weights); };
            results.total[r] = soften(work.scores + r * kSpanTokens, sight.seen(r), sight.keys(), 1.0f, results.most[r], put);
        }
    }

    template <bool two>
    LIUYI_INLINE static void mix_rows(const Sight& sight, int dim, const Work& work) {
        for (int column = 0; column < dim; column += 32) {
            const bool wide = column + 16 < dim;
            clear_sums();
            for (int block = 0; block < sight.blocks; ++block) {
                const uint16_t* v = values(sight.heads[block], dim) + 2 * column;
                const uint8_t* weights = work.packed + 2 * block * kBlockTokens;
                _tile_loadd(4, weights, 2 * kSpanTokens);
                _tile_loadd(6, v, 4 * dim);
                _tile_dpbf16ps(0, 4, 6);
                if constexpr (two) {
                    _tile_loadd(5, weights + 16 * 2 * kSpanTokens, 2 * kSpanTokens);
                    _tile_dpbf16ps(2, 5, 6);
                }
                if (wide) {
                    _tile_loadd(7, v + 32, 4 * dim);
                    _tile_dpbf16ps(1, 4, 7);
                    if constexpr (two) _tile_dpbf16ps(3, 5, 7);
                }
            }
            float* out = work.mixed + column;
            const long bytes = dim * static_cast<long>(sizeof(float));
            _tile_stored(0, out, bytes);
            if constexpr (two) _tile_stored(2, out + 16 * dim, bytes);
            if (wide) {
                _tile_stored(1, out + 16, bytes);
                if constexpr (two) _tile_stored(3, out + 16 * dim + 16, bytes);
            }
        }
    }

    static void mix(Session& session, int rows, const Sight& sight, int dim, const Work& work) {
        settle();
        session.tiles.set_depth(2 * kBlockTokens);
        if (rows > 16) mix_rows<true>(sight, dim, work);
        else mix_rows<false>(sight, dim, work);
    }
};

}  // namespace amx
}  // namespace liuyi
