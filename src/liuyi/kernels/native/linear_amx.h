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

// The tiles' sums, of 16 or 32 rows.
template <bool two, class Row>
LIUYI_INLINE void store_tiles(Row* rows) {
    _tile_stored(0, rows, sizeof(Row));
    _tile_stored(1, rows[0] + kTileRows, sizeof(Row));
    if (two) {
        _tile_stored(2, rows + kTileRows, sizeof(Row));
        _tile_stored(3, rows[kTileRows] + kTileRows, sizeof(Row));
    }
}

// A kernel adds to sums [rows, 32] the products of up to 32 tokens, whose number the tiles are set to, with some of the
// units that a panel's columns are counted in. `two` is whether they are more than 16.
//
//     struct Kernel {
//         static int units(w), most(w);           // of a panel, and how many at a time, which stay in the first-level cache
//         static size_t unit_bytes(w);            // of a panel
//         template <bool two> static void multiply(w, panel, first, count, x, rows, ahead, sums);
//     };

// A unit is 32 columns, a tile's depth.
struct Bf16Tiles {
    static int units(const Linear& w) { return w.depth / kTileColumns; }
    static int most(const Linear&) { return 9; }
    static size_t unit_bytes(const Linear&) { return kTileBytes; }

    template <bool two>
    static LIUYI_INLINE void multiply(const Linear& w, const uint8_t* panel, int first, int count, const uint8_t* x, int,
                                      AheadOfTiles ahead, Sums* sums) {
        const size_t stride = w.prepared_bytes;
        panel += first * kTileBytes;
        x += first * 64;
        if (first == 0) {
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
        for (int k = 0; k < count; ++k, panel += kTileBytes, x += 64) {
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
        store_tiles<two>(sums);
    }
};

// A group's whole numbers [rows, 32] and the scales that make them part of the sums.
struct Int8Group {
    const int32_t (*whole)[kPanel];
    const uint8_t *weight_scales, *x_scales;
    size_t stride;
    bool first;
    Sums* sums;

    LIUYI_INLINE void scale(int begin, int end) const {
        const Floats s0 = load_bf16(weight_scales), s1 = load_bf16(weight_scales + 2 * kWidth);
        for (int r = begin; r < end; ++r) {
            const Floats s = all_floats(x_scales + r * stride);
            float *left = sums[r], *right = left + kTileRows;
            store(left, fma(to_floats(load_ints(whole[r])), mul(s0, s), first ? zero() : load(left)));
            store(right, fma(to_floats(load_ints(whole[r] + kTileRows)), mul(s1, s), first ? zero() : load(right)));
        }
    }
};

// A unit is a group of columns. While the vector unit scales one the matrix unit is at the next.
struct Int8Tiles {
    static int units(const Linear& w) { return w.depth / w.group; }
    static int most(const Linear& w) { return 12 * kInt8Block / w.group; }
    static size_t unit_bytes(const Linear& w) { return linear_group_bytes(w); }

    template <bool two>
    static __attribute__((noinline)) void multiply(const Linear& w, const uint8_t* panel, int first, int count,
                                                   const uint8_t* x, int rows, AheadOfTiles ahead, Sums* sums) {
        alignas(64) int32_t whole[2][kTilesRows][kPanel];
        const size_t group_bytes = linear_group_bytes(w);
        const int blocks = w.group / kInt8Block;
        const auto multiply = [&](int g, const auto& meanwhile) __attribute__((always_inline)) {
            multiply_group<two>(panel + g * group_bytes, blocks, x + g * w.group, w.prepared_bytes, ahead, meanwhile);
            store_tiles<two>(whole[g % 2]);
        };
        const auto group = [&](int g) {
            return Int8Group{whole[g % 2], panel + (g + 1) * group_bytes - 2 * kPanel, x + w.depth + 4 * g, w.prepared_bytes,
                             g == 0, sums};
        };
        multiply(first, [](int) {});
        for (int g = first + 1; g < first + count; ++g) {
            const Int8Group before = group(g - 1);
            multiply(g, [&](int block) __attribute__((always_inline)) {
                before.scale(rows * block / blocks, rows * (block + 1) / blocks);
            });
        }
        group(first + count - 1).scale(0, rows);
    }

  private:
    // Leaves a group's whole numbers in the tiles; calls meanwhile(block) after each block.
    template <bool two, class Meanwhile>
    static LIUYI_INLINE void multiply_group(const uint8_t* weights, int blocks, const uint8_t* x, size_t stride,
                                            AheadOfTiles& ahead, const Meanwhile& meanwhile) {
        _tile_zero(0);
        _tile_zero(1);
        if (two) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int block = 0; block < blocks; ++block, x += kInt8Block, weights += kTileBytes) {
            ahead.fetch();
            _tile_stream_loadd(4, x, stride);
            _tile_loadd(6, weights, 128);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, weights + 64, 128);
            _tile_dpbssd(1, 4, 7);
            if (two) {
                _tile_stream_loadd(5, x + kTileRows * stride, stride);
                _tile_dpbssd(2, 5, 6);
                _tile_dpbssd(3, 5, 7);
            }
            meanwhile(block);
        }
    }
};

// Tokens of a block: their sums lie on the stack.
constexpr int kMostBlock = 512;

template <class Kernel>
void multiply_in_tiles(const Linear& w, const uint8_t* x, int tokens, Range panels, float* y, size_t stride,
                       Epilogue epilogue) {
    alignas(64) Sums sums[kMostBlock];
    LinearTiles registers;
    const int tiles = (tokens + kTilesRows - 1) / kTilesRows;
    const int units = Kernel::units(w), pieces = (units + Kernel::most(w) - 1) / Kernel::most(w);
    for (int at = panels.begin; at < panels.end; ++at) {
        const uint8_t* panel = w.weights.as<uint8_t>() + at * w.panel_bytes;
        for (int i = 0; i < pieces; ++i) {
            const int first = units * i / pieces, count = units * (i + 1) / pieces - first;
            for (int tile = 0, token = 0; tile < tiles; ++tile, token += kTilesRows) {
                const int left = tokens - token, rows = left < kTilesRows ? left : kTilesRows;
                const uint8_t* from = x + token * w.prepared_bytes;
                const AheadOfTiles ahead(w, panel + first * Kernel::unit_bytes(w), tile, tiles);
                if (rows > kTileRows) {
                    registers.set_rows(kTileRows, rows - kTileRows);
                    Kernel::template multiply<true>(w, panel, first, count, from, rows, ahead, sums + token);
                } else {
                    registers.set_rows(rows, rows);
                    Kernel::template multiply<false>(w, panel, first, count, from, rows, ahead, sums + token);
                }
                if (i + 1 < pieces) continue;
                finish_rows(w, at, sums + token, rows, y + token * stride, stride, epilogue);
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

// As multiply_blocks of linear_tile.h, in blocks of whole tiles.
template <class Kernel>
void multiply_tile_blocks(const Linear& w, const uint8_t* x, Range tokens, Range panels, float* y, size_t stride,
                          Epilogue epilogue) {
    const int fitting = static_cast<int>(kBlockBytes / w.prepared_bytes) / kTilesRows * kTilesRows;
    const int block = fitting < 2 * kTilesRows ? 2 * kTilesRows : fitting < kMostBlock ? fitting : kMostBlock;
    for (int token = tokens.begin; token < tokens.end; token += block) {
        const int left = tokens.end - token;
        multiply_in_tiles<Kernel>(w, x + token * w.prepared_bytes, left < block ? left : block, panels, y + token * stride,
                                  stride, epilogue);
    }
}

// From so many tokens on the matrix unit is faster than vpdpbusd, whose results are the same: with fewer, both wait for
// memory.
constexpr int kLeastInt8Tokens = 8;

// Whether it is a product for the matrix unit, which has done it then.
inline bool multiply_with_tiles(const Linear& w, const uint8_t* x, Range tokens, Range panels, float* y, size_t stride,
                                Epilogue epilogue) {
    const int count = tokens.end - tokens.begin;
    if (w.format == Format::bf16 && w.rounds_x && count <= Bf16FewKernel::kRows) {
        multiply_blocks<Bf16FewKernel>(w, x, tokens, panels, y, stride, epilogue);
        return true;
    }
    if (w.format == Format::bf16 && w.rounds_x) {
        multiply_tile_blocks<Bf16Tiles>(w, x, tokens, panels, y, stride, epilogue);
        return true;
    }
    if (w.format == Format::int8 && count >= kLeastInt8Tokens) {
        multiply_tile_blocks<Int8Tiles>(w, x, tokens, panels, y, stride, epilogue);
        return true;
    }
    return false;
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
