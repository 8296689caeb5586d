// bfloat16 and int8 products on the matrix unit (AMX).
//
// A panel of W is what a tile's right operand wants as it is: 16 rows of 64 bytes, 128 bytes apart, are 32 columns of
// bfloat16 or a group of 64 columns of int8, and two tiles side by side are a panel's 32 rows of W. A tile's product adds
// up a tile's columns in an order of its own, which is the same for every row: results depend on nothing else.
#pragma once

#include "linear_int8.h"
#include "linear_tile.h"
#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

constexpr int kTileRows = 16;
constexpr int kTilesRows = 2 * kTileRows;
constexpr size_t kTileBytes = 2048;  // of a panel, that two right operands hold

// The matrix unit, for as long as this lives: tiles 0, 1 and 4 have `upper` rows, 2, 3 and 5 `lower` ones, 6 and 7 sixteen.
class LinearTiles {
  public:
    ~LinearTiles() { _tile_release(); }

    void set_rows(int upper, int lower) {
        if (upper == shape_.rows[0] && lower == shape_.rows[2]) return;
        shape_.palette = 1;
        for (int i = 0; i < 8; ++i) shape_.row_bytes[i] = 64;
        for (const int i : {0, 1, 4}) shape_.rows[i] = static_cast<uint8_t>(upper);
        for (const int i : {2, 3, 5}) shape_.rows[i] = static_cast<uint8_t>(lower);
        for (const int i : {6, 7}) shape_.rows[i] = kTileRows;
        asm volatile("ldtilecfg %0" ::"m"(shape_));
    }

  private:
    struct alignas(64) Shape {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    Shape shape_{};
};

// Asks for a tile's share of the next panel, a piece for every two right operands.
struct AheadOfTiles {
    const char* at;
    int lines;

    AheadOfTiles(const Linear& w, const uint8_t* panel, int tile, int tiles)
        : at(reinterpret_cast<const char*>(panel + w.panel_bytes + tile * (w.panel_bytes / tiles))),
          lines((static_cast<int>(kTileBytes) / 64 + tiles - 1) / tiles) {}

    LIUYI_INLINE void fetch() {
        for (int i = 0; i < lines; ++i, at += 64) _mm_prefetch(at, _MM_HINT_T1);
    }
};

// sums [tokens, 32] of one panel and up to 32 tokens, whose number the tiles are set to.
template <bool two>
LIUYI_INLINE void multiply_bf16_tile(const Linear& w, const uint8_t* panel, const uint8_t* x, AheadOfTiles ahead, Sums* sums) {
    const size_t stride = w.prepared_bytes;
    _tile_zero(0);
    _tile_zero(1);
    if (two) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int k = 0; k < w.depth; k += 32, panel += kTileBytes, x += 64) {
        ahead.fetch();
        _tile_loadd(4, x, stride);
        _tile_loadd(6, panel, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + 64, 128);
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
            _tile_loadd(5, x + kTileRows * stride, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, sizeof(Sums));
    _tile_stored(1, sums[0] + kTileRows, sizeof(Sums));
    if (two) {
        _tile_stored(2, sums + kTileRows, sizeof(Sums));
        _tile_stored(3, sums[kTileRows] + kTileRows, sizeof(Sums));
    }
}

inline void multiply_bf16_tiles(const Linear& w, const uint8_t* x, int tokens, Range panels, float* y, size_t stride,
                                Epilogue epilogue) {
    constexpr int most = kTilesRows;
    alignas(64) Sums sums[most];
    LinearTiles registers;
    const int tiles = (tokens + most - 1) / most;
    for (int panel = panels.begin; panel < panels.end; ++panel) {
        const uint8_t* weights = w.weights.as<uint8_t>() + panel * w.panel_bytes;
        for (int tile = 0, token = 0; tile < tiles; ++tile) {
            const int count = tokens - token < most ? tokens - token : most;
            const uint8_t* rows = x + token * w.prepared_bytes;
            const AheadOfTiles ahead(w, weights, tile, tiles);
            if (count > kTileRows) {
                registers.set_rows(kTileRows, count - kTileRows);
                multiply_bf16_tile<true>(w, weights, rows, ahead, sums);
            } else {
                registers.set_rows(count, count);
                multiply_bf16_tile<false>(w, weights, rows, ahead, sums);
            }
            for (int r = 0; r < count; ++r, ++token) finish_row(w, panel, sums[r], y + token * stride, epilogue);
        }
    }
}

// Some groups of a panel, with the weights' 128 taken off and the scales widened.
constexpr int kPieceGroups = 12;
struct alignas(64) Int8Piece {
    int groups;
    alignas(64) uint8_t weights[kPieceGroups][kTileBytes];
    float scales[kPieceGroups][kPanel];

    void read(const uint8_t* from, int count) {
        groups = count;
        for (int g = 0; g < groups; ++g, from += kTileBytes + 2 * kPanel) {
            for (size_t i = 0; i < kTileBytes; i += sizeof(Ints)) {
                _mm512_store_si512(weights[g] + i, _mm512_xor_si512(load_ints(from + i), _mm512_set1_epi8(-128)));
            }
            store(scales[g], load_bf16(from + kTileBytes));
            store(scales[g] + kWidth, load_bf16(from + kTileBytes + 2 * kWidth));
        }
        asm volatile("" ::: "memory");  // To gcc, loading a tile reads no memory.
    }
};

// Adds R tokens' products with half a panel, over the groups of a piece, to `sums`. While the vector unit scales one group
// the matrix unit multiplies the next.
template <int R>
__attribute__((noinline)) void multiply_int8_half(const Int8Piece& piece, int half, const uint8_t* x, size_t stride,
                                                  const uint8_t* scales, bool first, Sums* sums) {
    alignas(64) int32_t whole[2][R][kTileRows];
    Floats total[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) total[r] = first ? zero() : load(sums[r] + half * kTileRows);
    const uint8_t* weights = piece.weights[0] + 64 * half;
    const float* weight_scales = piece.scales[0] + half * kTileRows;
    const auto scale = [&](const int32_t(&from)[R][kTileRows]) __attribute__((always_inline)) {
        const Floats s = load(weight_scales);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            total[r] = fma(to_floats(load_ints(from[r])), mul(s, all_floats(scales + r * stride)), total[r]);
        }
        weight_scales += kPanel;
        scales += sizeof(float);
    };
    const auto multiply = [&](int32_t(&to)[R][kTileRows]) __attribute__((always_inline)) {
        _tile_zero(0);
        _tile_loadd(4, x, stride);
        _tile_loadd(6, weights, 128);
        _tile_dpbssd(0, 4, 6);
        _tile_stored(0, to, 64);
        x += kInt8Group;
        weights += kTileBytes;
    };
    multiply(whole[0]);
    int g = 1;
    for (; g + 1 < piece.groups; g += 2) {
        multiply(whole[1]);
        scale(whole[0]);
        multiply(whole[0]);
        scale(whole[1]);
    }
    if (g < piece.groups) {
        multiply(whole[1]);
        scale(whole[0]);
        scale(whole[1]);
    } else {
        scale(whole[0]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store(sums[r] + half * kTileRows, total[r]);
}

template <int R = kTileRows>
LIUYI_INLINE void multiply_int8_tokens(int count, const Int8Piece& piece, const uint8_t* x, size_t stride,
                                       const uint8_t* scales, bool first, Sums* sums) {
    if constexpr (R > 1) {
        if (count < R) return multiply_int8_tokens<R - 1>(count, piece, x, stride, scales, first, sums);
    }
    for (int half = 0; half < 2; ++half) multiply_int8_half<R>(piece, half, x, stride, scales, first, sums);
}

constexpr int kInt8Tokens = 512;

inline void multiply_int8_tiles(const Linear& w, const uint8_t* x, int tokens, Range panels, float* y, size_t stride,
                                Epilogue epilogue) {
    alignas(64) Sums sums[kInt8Tokens];
    Int8Piece piece;
    LinearTiles registers;
    const int tiles = (tokens + kTileRows - 1) / kTileRows, groups = w.depth / kInt8Group;
    const int pieces = (groups + kPieceGroups - 1) / kPieceGroups;
    for (int panel = panels.begin; panel < panels.end; ++panel) {
        const uint8_t* weights = w.weights.as<uint8_t>() + panel * w.panel_bytes;
        for (int i = 0; i < pieces; ++i) {
            const int first = groups * i / pieces, count = groups * (i + 1) / pieces - first;
            piece.read(weights + first * (kTileBytes + 2 * kPanel), count);
            for (int tile = 0, token = 0; tile < tiles; ++tile) {
                const int rows = (tokens - token + tiles - tile - 1) / (tiles - tile);
                const uint8_t* from = x + token * w.prepared_bytes;
                AheadOfTiles ahead(w, weights + first * (kTileBytes + 2 * kPanel), tile, tiles);
                for (int g = 0; g < count; ++g) ahead.fetch();
                registers.set_rows(rows, rows);
                multiply_int8_tokens(rows, piece, from + first * kInt8Group, w.prepared_bytes, from + w.depth + 4 * first,
                                     i == 0, sums + token);
                token += rows;
            }
        }
        for (int token = 0; token < tokens; ++token) finish_row(w, panel, sums[token], y + token * stride, epilogue);
    }
}

// As multiply_blocks of linear_tile.h, in blocks of whole tiles.
template <class Multiply>
LIUYI_INLINE void multiply_tile_blocks(const Linear& w, Range tokens, int most, const Multiply& multiply) {
    const int fitting = static_cast<int>(kBlockBytes / w.prepared_bytes) / kTilesRows * kTilesRows;
    const int block = fitting < 2 * kTilesRows ? 2 * kTilesRows : fitting < most ? fitting : most;
    for (int token = tokens.begin; token < tokens.end; token += block) {
        const int left = tokens.end - token;
        multiply(token, left < block ? left : block);
    }
}

// From so many tokens on the matrix unit is faster than vpdpbusd, whose results are the same.
constexpr int kLeastInt8Tokens = 12;

// Whether it is a product for the matrix unit, which has done it then.
inline bool multiply_with_tiles(const Linear& w, const uint8_t* x, Range tokens, Range panels, float* y, size_t stride,
                                Epilogue epilogue) {
    if (w.format == Format::bf16 && w.rounds_x) {
        multiply_tile_blocks(w, tokens, tokens.end, [&](int token, int count) {
            multiply_bf16_tiles(w, x + token * w.prepared_bytes, count, panels, y + token * stride, stride, epilogue);
        });
        return true;
    }
    if (w.format == Format::int8 && tokens.end - tokens.begin >= kLeastInt8Tokens) {
        multiply_tile_blocks(w, tokens, kInt8Tokens, [&](int token, int count) {
            multiply_int8_tiles(w, x + token * w.prepared_bytes, count, panels, y + token * stride, stride, epilogue);
        });
        return true;
    }
    return false;
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
