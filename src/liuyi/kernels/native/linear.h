// Linear layers y = x·Wᵀ: packed weights, prepared activations, and the product, for every number format.
//
//     Linear w = linear_new(set, Format::int8, rows, columns, gated, bias);    // allocates, packs nothing
//     for each panel in parallel:  linear_pack(w, sources, panel);               // quantises and lays out 32 rows
//     avx512::prepare(w, x, prepared);                                           // one row of float32 -> its format
//     avx512::multiply(w, prepared, {0, tokens}, {0, w.panels}, y, stride, Epilogue::store);
//
// Nothing here starts a thread: callers cut panels (decoding) or tokens (prefill) between theirs. An output depends on
// its own row of x and its own row of W alone, bit for bit: not on the other rows, nor on how the work is cut.
//
// `prepare` and `multiply` exist once per instruction set, in the namespaces avx2, avx512 and amx, with the same layouts.
// A file compiled for one of them finds the right ones in the namespace LIUYI_ISA (simd.h).
//
// Formats, and what a row of x becomes (`prepared_bytes` each, 64-byte aligned, from `prepare`):
//   f32    float32 weights                                    x stays float32
//   bf16   bfloat16 weights                                   x stays float32, or bfloat16 where AMX or vdpbf16ps is faster
//   int8   −127..127, a bfloat16 scale per 64 to 256 columns  x in int8, a float32 scale for the same columns; both
//          sides rotated in these groups before they are rounded (linear_rotate.h)
//   int4   0..15, a bfloat16 scale and minimum per 32         x in int8, a float32 scale for the same columns
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "cpu.h"

namespace liuyi {

enum class Format : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

// What to do with a product: write it, add it to what is there, or (gated) write silu(gate)·up, half as wide.
enum class Epilogue : int { store = 0, add = 1, swiglu = 2 };

// Rows of W that lie together in memory.
constexpr int kPanel = 32;

// Columns that share a scale. An int8 group is as many blocks of columns as divide a row's, at most four.
constexpr int kInt8Block = 64;
constexpr int kMostInt8Group = 4 * kInt8Block;
constexpr int kInt4Group = 32;

// bfloat16 columns that AMX multiplies at once.
constexpr int kTileColumns = 32;

// Half-open range of tokens or panels.
struct Range {
    int begin, end;
};

// A packed matrix. Panels of 32 rows lie one after the other, each one stream of bytes in the order it is read in:
//   f32   [depth][32]            bf16  [depth/2][32][2]
//   int8  for each group: [group/4][32][4] weights, with 128 added unless they are signed, then [32] bfloat16 scales
//   int4  for each group: [4][32][4] bytes (low half: column 8i+j, high half: column 8i+4+j), then [32] bfloat16
//         scales, then [32] bfloat16 minima: weight = scale·q + minimum
// A gated matrix holds gate (rows 0..rows/2) and up (the rest) interleaved by 16, so that one panel has both.
struct Linear {
    Format format;
    int rows, columns;
    int group;              // columns that share a scale; 0 for float formats
    int depth;              // columns, rounded up to whole groups (for bf16 2, or 32 with AMX); what is beyond is zero
    int panels;
    bool gated;
    bool is_signed;         // int8: weights lie as they are, for AMX
    size_t panel_bytes;
    size_t prepared_bytes;  // of one row of x
    bool rounds_x;          // bf16: x is rounded to bfloat16, for AMX or vdpbf16ps
    Buffer weights;         // panels · panel_bytes
    Buffer bias;            // float32 [panels · 32] in the order of the panels; empty without one
};

// One of the matrices that are stacked, top to bottom, into a Linear, row-major [rows, columns].
//   f32, bf16          values: float / bfloat16 bits; any format can be made of them
//   int8               values: int8 [rows, depth] of rotated groups, scales: bfloat16 bits [rows, depth/group]; only
//                      for Format::int8
//   int4               values: two to a byte, [rows, ceil(columns/2)], column 2i in the low half; scales and minima as
//                      above with groups of 32; only for Format::int4
struct Source {
    Format format;
    int rows;
    const void* values;
    const uint16_t* scales;
    const uint16_t* minima;
    const float* bias;    // [rows] or null
};

// An unfilled matrix for an instruction set; throws std::bad_alloc. `gated`: rows is gate's plus up's, which are equal.
Linear linear_new(InstructionSet set, Format format, int rows, int columns, bool gated, bool bias);

// Choose whether x is rounded to bfloat16 (format bf16); a fresh matrix has what is fast on this processor.
void linear_round_x(Linear& linear, bool rounds_x);

// Fill one panel, and its part of the bias, from the sources, whose rows add up to linear.rows. Panels may be filled at
// the same time. Throws std::bad_alloc.
void linear_pack(const Linear& linear, const Source* sources, int panel);

// Bytes of one group of a panel, scales included (int8 and int4).
size_t linear_group_bytes(const Linear& linear);

// The row of W that stands at `row` 0..31 of a panel, or -1 for padding.
int linear_row(const Linear& linear, int panel, int row);

// The weights of W's row `row` as the kernels see them, into out[columns] (embedding look-up of a tied head, tests).
void linear_unpack(const Linear& linear, int row, float* out);

#define LIUYI_LINEAR_FUNCTIONS                                                                                     \
    /* x [columns] float32 -> out, w.prepared_bytes, 64-byte aligned. Linears of the same format and columns share \
       prepared rows. */                                                                                           \
    void prepare(const Linear& w, const float* x, void* out);                                                      \
    /* y[t] for tokens t in `tokens` and the rows of `panels`: `prepared` is the row of token 0, rows lie          \
       w.prepared_bytes apart; y is the row of token 0, rows `stride` floats apart; nothing is written beyond      \
       rows. In a gated matrix `store` and `add` put gate at 0..rows/2 and up behind it; `swiglu` writes           \
       rows/2. */                                                                                                  \
    void multiply(const Linear& w, const void* prepared, Range tokens, Range panels, float* y, size_t stride,      \
                  Epilogue epilogue);                                                                              \
    /* out[i] = silu(gate[i])·up[i], the same bits as Epilogue::swiglu. */                                         \
    void swiglu(const float* gate, const float* up, int count, float* out);

namespace avx2 {
LIUYI_LINEAR_FUNCTIONS
}
namespace avx512 {
LIUYI_LINEAR_FUNCTIONS
}
namespace amx {
LIUYI_LINEAR_FUNCTIONS
}

}  // namespace liuyi
