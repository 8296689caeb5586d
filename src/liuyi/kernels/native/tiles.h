// The matrix unit (AMX): eight tiles of 16 rows of 64 bytes, of which 0–3 hold sums of 32 × 32.
#pragma once

#include <cstdint>

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

constexpr int kTile = 512;  // bfloat16 numbers in a tile

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

}  // namespace LIUYI_ISA
}  // namespace liuyi
