// The matrix unit (AMX): eight tiles of 16 rows of 64 bytes, of which 0–3 hold sums of 32 × 32.
#pragma once

#include <cstdint>

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

constexpr int kBlock = 32;
constexpr int kTile = 512;  // bfloat16 numbers in a tile, half a block

struct alignas(64) TileShape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The matrix unit, for as long as this lives.
class Tiles {
  public:
    Tiles() {
        // Not on the stack: to gcc's intrinsic only the first bytes seem to be read.
        static const TileShape shape;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
};

LIUYI_INLINE void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Sums of 32 × 32, `stride` floats from row to row.
LIUYI_INLINE void load_sums(const float* from, int stride) {
    _tile_loadd(0, from, stride * 4);
    _tile_loadd(1, from + 16, stride * 4);
    _tile_loadd(2, from + 16 * stride, stride * 4);
    _tile_loadd(3, from + 16 * stride + 16, stride * 4);
}
LIUYI_INLINE void store_sums(float* to, int stride) {
    _tile_stored(0, to, stride * 4);
    _tile_stored(1, to + 16, stride * 4);
    _tile_stored(2, to + 16 * stride, stride * 4);
    _tile_stored(3, to + 16 * stride + 16, stride * 4);
}

// 16 × 16 numbers of four bytes, turned about the diagonal.
LIUYI_INLINE void transpose(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// 32 rows of 32 numbers → two tiles, each of 16 of the rows; turned, each row of a tile holds one pair of numbers of each.
template <bool turned>
LIUYI_INLINE void pack_rows(const uint16_t* from, int64_t stride, uint16_t* to) {
    for (int half = 0; half < 2; ++half) {
        __m512i rows[16];
        for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(from + (half * 16 + i) * stride);
        if (turned) transpose(rows);
        for (int i = 0; i < 16; ++i) _mm512_store_si512(to + half * kTile + i * 32, rows[i]);
    }
}

// 32 rows of 32 numbers → two tiles, each of 16 of the columns, with neighbouring rows as pairs; turned, each row of a tile
// holds the 32 numbers of one column.
template <bool turned>
LIUYI_INLINE void pack_pairs(const uint16_t* from, int64_t stride, uint16_t* to) {
    const __m512i upwards = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006, 0x270007,
                                              0x280008, 0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f);
    for (int half = 0; half < 2; ++half) {
        const __m512i which = _mm512_add_epi16(upwards, _mm512_set1_epi16(static_cast<short>(16 * half)));
        __m512i pairs[16];
        for (int i = 0; i < 16; ++i) {
            pairs[i] = _mm512_permutex2var_epi16(_mm512_loadu_si512(from + 2 * i * stride), which,
                                                 _mm512_loadu_si512(from + (2 * i + 1) * stride));
        }
        if (turned) transpose(pairs);
        for (int i = 0; i < 16; ++i) _mm512_store_si512(to + half * kTile + i * 32, pairs[i]);
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
