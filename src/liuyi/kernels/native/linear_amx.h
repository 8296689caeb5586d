// bfloat16 and int8 products on the matrix unit (AMX).
//
// A panel of W is what a tile's right operand wants as it is: 16 rows of 64 bytes, 128 bytes apart, are 32 columns of
// bfloat16 or a block of 64 columns of int8, and two tiles side by side are a panel's 32 rows of W. A tile's product adds
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

// Adds to sums [tokens, 32] the products of up to 32 tokens, whose number the tiles are set to, with some columns of a panel.
template <bool two>
LIUYI_INLINE void multiply_bf16_tile(const uint8_t* panel, int steps, const uint8_t* x, size_t stride, bool first,
                                     AheadOfTiles ahead, Sums* sums) {
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        if (two) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, sums, sizeof(Sums));
        _tile_loadd(1, sums[0] + kTileRows, sizeof(Sums));
        if (two) {
            _tile_loadd(2, sums + kTileRows, sizeof(Sums));
            _tile_loadd(3, sums[kTileRows] + kTileRows, sizeof(Sums));
        }
    }
    for (int k = 0; k < steps; ++k, panel += kTileBytes, x += 64) {
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

// Tokens of a block: their sums lie on the stack.
constexpr int kMostBlock = 512;

// Columns are taken in pieces, of which a panel's part stays in the first-level cache while tokens go by.
constexpr int kPieceSteps = 9;

inline void multiply_bf16_tiles(const Linear& w, const uint8_t* x, int tokens, Range panels, float* y, size_t stride,
                                Epilogue epilogue) {
    constexpr int most = kTilesRows;
    alignas(64) Sums sums[kMostBlock];
    LinearTiles registers;
    const int tiles = (tokens + most - 1) / most;
    const int steps = w.depth / 32, pieces = (steps + kPieceSteps - 1) / kPieceSteps;
    for (int panel = panels.begin; panel < panels.end; ++panel) {
        const uint8_t* weights = w.weights.as<uint8_t>() + panel * w.panel_bytes;
        for (int i = 0; i < pieces; ++i) {
            const int first = steps * i / pieces, count = steps * (i + 1) / pieces - first;
            const uint8_t* part = weights + first * kTileBytes;
            for (int tile = 0, token = 0; tile < tiles; ++tile, token += most) {
                const int left = tokens - token, rows = left < most ? left : most;
                const uint8_t* from = x + token * w.prepared_bytes + first * 64;
                const AheadOfTiles ahead(w, part, tile, tiles);
                if (rows > kTileRows) {
                    registers.set_rows(kTileRows, rows - kTileRows);
                    multiply_bf16_tile<true>(part, count, from, w.prepared_bytes, i == 0, ahead, sums + token);
                } else {
                    registers.set_rows(rows, rows);
                    multiply_bf16_tile<false>(part, count, from, w.prepared_bytes, i == 0, ahead, sums + token);
                }
                if (i + 1 < pieces) continue;
                for (int r = 0; r < rows; ++r) finish_row(w, panel, sums[token + r], y + (token + r) * stride, epilogue);
            }
        }
    }
}

// Numbers too small to be normal are zero, as they are to the matrix unit, for as long as this lives.
class SmallAsZero {
  public:
    SmallAsZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
    ~SmallAsZero() { _mm_setcsr(before_); }

  private:
    const unsigned before_;
};

// The same as the matrix unit gives, for a few tokens, by fused multiply-adds: of 32 columns the even and the odd ones are
// added up from zero, each in order, then both together to what was there before (Intel's manual, TDPBF16PS). One or two
// tokens wait for memory, which ordinary loads are better at than those of tiles.
struct Bf16FewKernel {
    static constexpr int kRows = 4;
    static int steps(const Linear& w) { return w.depth / 2; }

    template <int R>
    static LIUYI_INLINE void multiply(const Linear& w, const uint8_t* weights, int, const uint8_t* x, Ahead ahead,
                                      Floats (&total)[R][2]) {
        const SmallAsZero mode;
        for (int k = 0; k < w.depth; k += kTileColumns) {
            Floats even[R][2], odd[R][2];
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) even[r][0] = even[r][1] = odd[r][0] = odd[r][1] = zero();
#pragma GCC unroll 4
            for (int i = 0; i < kTileColumns; i += 2, weights += 4 * kPanel, x += 4) {
                ahead.fetch();
                const Ints w0 = load_ints(weights), w1 = load_ints(weights + sizeof(Ints));
                LIUYI_UNROLL
                for (int r = 0; r < R; ++r) {
                    const Ints pair = all_ints(x + r * w.prepared_bytes);
                    const Floats first = first_bf16(pair), second = second_bf16(pair);
                    even[r][0] = fma(first_bf16(w0), first, even[r][0]);
                    even[r][1] = fma(first_bf16(w1), first, even[r][1]);
                    odd[r][0] = fma(second_bf16(w0), second, odd[r][0]);
                    odd[r][1] = fma(second_bf16(w1), second, odd[r][1]);
                }
            }
            LIUYI_UNROLL
            for (int r = 0; r < R; ++r) {
                total[r][0] = add(total[r][0], add(even[r][0], odd[r][0]));
                total[r][1] = add(total[r][1], add(even[r][1], odd[r][1]));
                asm volatile("" : "+v"(total[r][0]), "+v"(total[r][1]));  // Not later, in another mode.
            }
        }
    }
};

// Some groups of a panel, with the weights' 128 taken off and the scales widened. The weights of so many columns and the
// tokens of a tile stay in the first-level cache together.
constexpr int kPieceBlocks = 12;
struct alignas(64) Int8Piece {
    int groups, blocks;  // `blocks` in each group.
    alignas(64) uint8_t weights[kPieceBlocks][kTileBytes];
    float scales[kPieceBlocks][kPanel];

    void read(const uint8_t* from, int count) {
        groups = count;
        uint8_t* out = weights[0];
        for (int g = 0; g < groups; ++g, from += 2 * kPanel) {
            for (int i = 0; i < blocks * static_cast<int>(kTileBytes / sizeof(Ints)); ++i) {
                _mm512_store_si512(out, _mm512_xor_si512(load_ints(from), _mm512_set1_epi8(-128)));
                out += sizeof(Ints);
                from += sizeof(Ints);
            }
            store(scales[g], load_bf16(from));
            store(scales[g] + kWidth, load_bf16(from + 2 * kWidth));
        }
        asm volatile("" ::: "memory");  // To gcc, loading a tile reads no memory.
    }
};

// Tokens of an int8 tile: 14·2 sums and what scales a row are as many as 32 registers hold.
constexpr int kInt8Rows = 14;

// Adds R tokens' products with a panel, over the groups of a piece, to `sums`. While the vector unit scales one group the
// matrix unit is at the next one.
template <int R>
__attribute__((noinline)) void multiply_int8_tile(const Int8Piece& piece, const uint8_t* x, size_t stride,
                                                  const uint8_t* scales, bool first, AheadOfTiles ahead, Sums* sums) {
    alignas(64) int32_t whole[2][R][kPanel];
    Floats total[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        total[r][0] = first ? zero() : load(sums[r]);
        total[r][1] = first ? zero() : load(sums[r] + kTileRows);
    }
    const auto multiply = [&](int g) __attribute__((always_inline)) {
        _tile_zero(0);
        _tile_zero(1);
        for (int block = g * piece.blocks; block < (g + 1) * piece.blocks; ++block) {
            ahead.fetch();
            _tile_loadd(4, x + block * kInt8Block, stride);
            _tile_loadd(6, piece.weights[block], 128);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, piece.weights[block] + 64, 128);
            _tile_dpbssd(1, 4, 7);
        }
        _tile_stored(0, whole[g % 2], sizeof(Sums));
        _tile_stored(1, whole[g % 2][0] + kTileRows, sizeof(Sums));
    };
    multiply(0);
    for (int g = 0; g < piece.groups; ++g) {
        if (g + 1 < piece.groups) multiply(g + 1);
        const Floats s0 = load(piece.scales[g]), s1 = load(piece.scales[g] + kTileRows);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Floats s = all_floats(scales + 4 * g + r * stride);
            total[r][0] = fma(to_floats(load_ints(whole[g % 2][r])), mul(s0, s), total[r][0]);
            total[r][1] = fma(to_floats(load_ints(whole[g % 2][r] + kTileRows)), mul(s1, s), total[r][1]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        store(sums[r], total[r][0]);
        store(sums[r] + kTileRows, total[r][1]);
    }
}

template <int R = kInt8Rows>
LIUYI_INLINE void multiply_int8_tokens(int count, const Int8Piece& piece, const uint8_t* x, size_t stride,
                                       const uint8_t* scales, bool first, AheadOfTiles ahead, Sums* sums) {
    if constexpr (R > 1) {
        if (count < R) return multiply_int8_tokens<R - 1>(count, piece, x, stride, scales, first, ahead, sums);
    }
    multiply_int8_tile<R>(piece, x, stride, scales, first, ahead, sums);
}

inline void multiply_int8_tiles(const Linear& w, const uint8_t* x, int tokens, Range panels, float* y, size_t stride,
                                Epilogue epilogue) {
    alignas(64) Sums sums[kMostBlock];
    Int8Piece piece;
    LinearTiles registers;
    piece.blocks = w.group / kInt8Block;
    const int tiles = (tokens + kInt8Rows - 1) / kInt8Rows, groups = w.depth / w.group;
    const int most = kPieceBlocks / piece.blocks, pieces = (groups + most - 1) / most;
    for (int panel = panels.begin; panel < panels.end; ++panel) {
        const uint8_t* weights = w.weights.as<uint8_t>() + panel * w.panel_bytes;
        for (int i = 0; i < pieces; ++i) {
            const int first = groups * i / pieces, count = groups * (i + 1) / pieces - first;
            const uint8_t* part = weights + first * linear_group_bytes(w);
            piece.read(part, count);
            for (int tile = 0, token = 0; tile < tiles; ++tile, token += kInt8Rows) {
                const int left = tokens - token, rows = left < kInt8Rows ? left : kInt8Rows;
                const uint8_t* from = x + token * w.prepared_bytes;
                registers.set_rows(rows, rows);
                multiply_int8_tokens(rows, piece, from + first * w.group, w.prepared_bytes, from + w.depth + 4 * first,
                                     i == 0, AheadOfTiles(w, part, tile, tiles), sums + token);
                if (i + 1 < pieces) continue;
                for (int r = 0; r < rows; ++r) finish_row(w, panel, sums[token + r], y + (token + r) * stride, epilogue);
            }
        }
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

// From so many tokens on the matrix unit is faster than vpdpbusd, whose results are the same: with fewer, both wait for
// memory, and a piece has to be there before it is multiplied.
constexpr int kLeastInt8Tokens = 56;

// Whether it is a product for the matrix unit, which has done it then.
inline bool multiply_with_tiles(const Linear& w, const uint8_t* x, Range tokens, Range panels, float* y, size_t stride,
                                Epilogue epilogue) {
    const int count = tokens.end - tokens.begin;
    if (w.format == Format::bf16 && w.rounds_x && count <= Bf16FewKernel::kRows) {
        multiply_blocks<Bf16FewKernel>(w, x, tokens, panels, y, stride, epilogue);
        return true;
    }
    if (w.format == Format::bf16 && w.rounds_x) {
        multiply_tile_blocks(w, tokens, kMostBlock, [&](int token, int count) {
            multiply_bf16_tiles(w, x + token * w.prepared_bytes, count, panels, y + token * stride, stride, epilogue);
        });
        return true;
    }
    if (w.format == Format::int8 && count >= kLeastInt8Tokens) {
        multiply_tile_blocks(w, tokens, kMostBlock, [&](int token, int count) {
            multiply_int8_tiles(w, x + token * w.prepared_bytes, count, panels, y + token * stride, stride, epilogue);
        });
        return true;
    }
    return false;
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
