// The matrix unit (AMX) as attention uses it.
//
// A block of keys, and one of values, lies in the cache just as the unit wants its right operand, so tiles are loaded from
// where they are.
#pragma once

#include "kv.h"
#include "tiles.h"

namespace liuyi {
namespace amx {

// Tiles 0–3 hold sums [rows][16], 4 and 5 left operands [rows] of `depth` bytes, 6 and 7 right ones, [depth / 4][16][4 bytes];
// or 4 and 7 those of one product, 5 and 6 those of another.
class AttentionTiles {
  public:
    explicit AttentionTiles(int rows) : rows_(rows) {}
    ~AttentionTiles() { _tile_release(); }
    AttentionTiles(const AttentionTiles&) = delete;
    AttentionTiles& operator=(const AttentionTiles&) = delete;

    void set_depth(int depth) { set_depths(depth, depth); }
    void set_depths(int outer, int inner) {
        if (outer == outer_ && inner == inner_) return;
        outer_ = outer;
        inner_ = inner;
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int tile = 0; tile < 8; ++tile) {
            const int depth = tile == 5 || tile == 6 ? inner : outer;
            shape.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows_ : depth / 4);
            shape.row_bytes[tile] = static_cast<uint16_t>(tile < 4 || tile > 5 ? 64 : depth);
        }
        asm volatile("" : : "r"(&shape) : "memory");  // gcc knows of the first bytes only that they are read
        _tile_loadconfig(&shape);
    }

  private:
    const int rows_;
    int outer_ = 0, inner_ = 0;
};

// The widest tile of rows of so many bytes.
LIUYI_INLINE int tile_depth(int bytes) { return bytes % 64 == 0 ? 64 : bytes % 32 == 0 ? 32 : 16; }

// The compiler does not know that tiles read memory: what was stored before must be there.
LIUYI_INLINE void settle() { asm volatile("" ::: "memory"); }

// Lane i of the result is what `join` makes of all lanes of vector i, in the order in which `sum` adds them up.
template <class Join>
LIUYI_INLINE Floats join_lanes(const Floats* of, const Join& join) {
    Floats eights[8], fours[4], pairs[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const Floats a = of[2 * i], b = of[2 * i + 1];
        eights[i] = join(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const Floats a = eights[2 * i], b = eights[2 * i + 1];
        fours[i] = join(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const __m512d a = _mm512_castps_pd(fours[2 * i]), b = _mm512_castps_pd(fours[2 * i + 1]);
        pairs[i] = join(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const Floats turned = join(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), turned);
}

LIUYI_INLINE void ask_for(const uint8_t* from, int bytes) {
    for (int at = 0; at < bytes; at += 64) _mm_prefetch(reinterpret_cast<const char*>(from + at), _MM_HINT_T0);
}

}  // namespace amx
}  // namespace liuyi
