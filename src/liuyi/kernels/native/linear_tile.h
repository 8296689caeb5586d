// How a product is cut: tokens into blocks that stay in the second-level cache, panels within a block, and tiles of a
// few tokens within a panel, which stays in the first-level cache. A kernel multiplies one tile:
//
//     struct Kernel {
//         static constexpr int kRows;                    // the most tokens of a tile
//         static int steps(w);                           // how often a product calls ahead.fetch()
//         template <int R> static void multiply(w, weights, slab, x, ahead, total);
//     };
//
// It adds R tokens' products with a slab of a panel (two vectors of rows of W: all of the panel with AVX512, half of it
// with AVX2) to `total`, in an order that does not depend on R.
#pragma once

#include "linear.h"
#include "simd.h"

#define LIUYI_UNROLL _Pragma("GCC unroll 12")

namespace liuyi {
namespace LIUYI_ISA {

constexpr size_t kBlockBytes = size_t{512} << 10;

// Asks for the next panel while this one is multiplied, each tile for its share: with few tokens, which wait for memory
// and not for arithmetic, memory is never idle.
struct Ahead {
    const char* at;
    size_t step;

    LIUYI_INLINE void fetch() {
        _mm_prefetch(at, _MM_HINT_T1);
        _mm_prefetch(at + 64, _MM_HINT_T1);
        at += step;
    }
};

using Sums = float[kPanel];

// One of the `tiles` tiles of a panel.
struct Tile {
    const Linear& w;
    const uint8_t* panel;
    const uint8_t* x;
    int index, tiles;
};

template <class Kernel, int R>
__attribute__((noinline)) void multiply_tile(const Tile& tile, Sums* sums) {
    constexpr int slabs = kPanel / (2 * kWidth);
    const char* next = reinterpret_cast<const char*>(tile.panel + tile.w.panel_bytes);
    const size_t shares = static_cast<size_t>(tile.tiles) * slabs;
    for (int slab = 0; slab < slabs; ++slab) {
        Floats total[R][2];
        LIUYI_UNROLL
        for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = zero();
        const Ahead ahead{next + (tile.index * slabs + slab) * tile.w.panel_bytes / shares,
                          tile.w.panel_bytes / (shares * Kernel::steps(tile.w)) + 1};
        Kernel::template multiply<R>(tile.w, tile.panel, slab, tile.x, ahead, total);
        LIUYI_UNROLL
        for (int r = 0; r < R; ++r) {
            store(sums[r] + slab * 2 * kWidth, total[r][0]);
            store(sums[r] + slab * 2 * kWidth + kWidth, total[r][1]);
        }
    }
}

template <class Kernel, int R = Kernel::kRows>
LIUYI_INLINE void multiply_tokens(int count, const Tile& tile, Sums* sums) {
    if constexpr (R > 1) {
        if (count < R) return multiply_tokens<Kernel, R - 1>(count, tile, sums);
    }
    multiply_tile<Kernel, R>(tile, sums);
}

// Writes or adds `count` of a panel's numbers to y.
LIUYI_INLINE void put(const float* sums, int count, float* y, bool add_to_y) {
    for (int i = 0; i < count; i += kWidth) {
        const int left = count - i;
        Floats value = load(sums + i);
        if (left >= kWidth) {
            store(y + i, add_to_y ? add(load(y + i), value) : value);
        } else {
            store_first(y + i, add_to_y ? add(load_first(y + i, left), value) : value, left);
        }
    }
}

LIUYI_INLINE void finish_row(const Linear& w, int panel, float* sums, float* y, Epilogue epilogue) {
    constexpr int half = kPanel / 2;
    if (w.bias.bytes() != 0) {
        const float* bias = w.bias.as<float>() + panel * kPanel;
        for (int i = 0; i < kPanel; i += kWidth) store(sums + i, add(load(sums + i), load(bias + i)));
    }
    if (!w.gated) {
        const int first = panel * kPanel, left = w.rows - first;
        return put(sums, left < kPanel ? left : kPanel, y + first, epilogue == Epilogue::add);
    }
    const int first = panel * half, left = w.rows / 2 - first, count = left < half ? left : half;
    if (epilogue != Epilogue::swiglu) {
        put(sums, count, y + first, epilogue == Epilogue::add);
        return put(sums + half, count, y + w.rows / 2 + first, epilogue == Epilogue::add);
    }
    for (int i = 0; i < half; i += kWidth) store(sums + i, mul(silu(load(sums + i)), load(sums + half + i)));
    put(sums, count, y + first, false);
}

// The sums of some tokens with a panel become results. Nearly always the panel is whole and there is no bias.
LIUYI_INLINE void finish_rows(const Linear& w, int panel, Sums* sums, int rows, float* y, size_t stride, Epilogue epilogue) {
    constexpr int half = kPanel / 2;
    const bool whole = (panel + 1) * kPanel <= w.rows && w.bias.bytes() == 0 && w.gated == (epilogue == Epilogue::swiglu);
    if (!whole) {
        for (int r = 0; r < rows; ++r) finish_row(w, panel, sums[r], y + r * stride, epilogue);
        return;
    }
    float* to = y + panel * (w.gated ? half : kPanel);
    for (int r = 0; r < rows; ++r, to += stride) {
        if (w.gated) {
            for (int i = 0; i < half; i += kWidth) store(to + i, mul(silu(load(sums[r] + i)), load(sums[r] + half + i)));
        } else {
            const bool add_to_y = epilogue == Epilogue::add;
            for (int i = 0; i < kPanel; i += kWidth) {
                const Floats value = load(sums[r] + i);
                store(to + i, add_to_y ? add(load(to + i), value) : value);
            }
        }
    }
}

template <class Kernel>
void multiply_panels(const Linear& w, const uint8_t* x, int tokens, Range panels, float* y, size_t stride,
                     Epilogue epilogue) {
    alignas(64) Sums sums[Kernel::kRows];
    const int tiles = (tokens + Kernel::kRows - 1) / Kernel::kRows;
    for (int panel = panels.begin; panel < panels.end; ++panel) {
        const uint8_t* weights = w.weights.as<uint8_t>() + panel * w.panel_bytes;
        for (int tile = 0, token = 0; tile < tiles; ++tile) {
            const int count = (tokens - token + tiles - tile - 1) / (tiles - tile);
            multiply_tokens<Kernel>(count, {w, weights, x + token * w.prepared_bytes, tile, tiles}, sums);
            finish_rows(w, panel, sums, count, y + token * stride, stride, epilogue);
            token += count;
        }
    }
}

template <class Kernel>
void multiply_blocks(const Linear& w, const uint8_t* x, Range tokens, Range panels, float* y, size_t stride,
                     Epilogue epilogue) {
    const size_t fitting = kBlockBytes / w.prepared_bytes;
    const int block = fitting > 4 * Kernel::kRows ? static_cast<int>(fitting) : 4 * Kernel::kRows;
    for (int token = tokens.begin; token < tokens.end; token += block) {
        const int left = tokens.end - token;
        multiply_panels<Kernel>(w, x + token * w.prepared_bytes, left < block ? left : block, panels,
                                y + token * stride, stride, epilogue);
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
