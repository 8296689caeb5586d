// product.h with AMX: tiles 0–3 hold sums of 32 × 32, 4 and 5 the left operand, 6 and 7 the right one.
//
// After Goto and van de Geijn (2008, "Anatomy of High-Performance Matrix Multiplication"): a part packs its columns of the
// right operand for the L2 cache, and of the left one 32 rows at a time for the L1 cache. Of a packed block of 32 × 32 the
// left one's tiles hold 16 rows of 32 numbers each, the right one's 16 pairs of rows of 16 columns each.

#include "product.h"

#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "simd.h"
#include "tiles.h"

namespace liuyi {

using namespace LIUYI_ISA;

namespace {

constexpr int kBlockSize = kBlock * kBlock;
constexpr int kLongestChunk = 18;  // a row of so many blocks, and sums, fit the L1 cache
constexpr int kCacheBlocks = 640;  // so many fit the L2 cache: 1.25 MiB
constexpr int64_t kCacheNumbers = 1 << 20;  // so many do not, with what else is there

int parts_of(int count, int each) { return (count + each - 1) / each; }

enum class Side { kLeft, kRight };

// The block of an operand that begins at `line` (a row of the left one, a column of the right one) and `inner`; zero beyond
// the end of either.
template <Side side>
void pack_block(const Operand& operand, int line, int lines, int inner, int inners, uint16_t* to) {
    const int seen_lines = std::min(kBlock, lines - line), seen_inners = std::min(kBlock, inners - inner);
    // The lines lie one after the other, unless the inner dimension does.
    const bool by_line = (side == Side::kLeft) != operand.across;
    const int rows = by_line ? seen_lines : seen_inners, numbers = by_line ? seen_inners : seen_lines;
    const uint16_t* from = operand.values + (by_line ? line * operand.stride + inner : inner * operand.stride + line);
    int64_t stride = operand.stride;
    alignas(64) uint16_t edge[kBlockSize];
    if (rows < kBlock || numbers < kBlock) {
        std::memset(edge, 0, sizeof(edge));
        for (int i = 0; i < rows; ++i) std::memcpy(edge + i * kBlock, from + i * stride, numbers * 2);
        from = edge;
        stride = kBlock;
    }
    if (by_line) pack_rows<side == Side::kRight>(from, stride, to);
    else pack_pairs<side == Side::kLeft>(from, stride, to);
}

// sums += left · right, over so many blocks of both. The right one streams past: it must not drive the left one, which is
// used again, out of the L1 cache.
LIUYI_INLINE void multiply(const uint16_t* left, const uint16_t* right, int blocks) {
    for (int k = 0; k < blocks; ++k, left += kBlockSize, right += kBlockSize) {
        _tile_loadd(4, left, 64);
        _tile_stream_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, left + kTile, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_stream_loadd(7, right + kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// Where a product goes, [rows, columns] or turned about its diagonal; streamed past the caches, which need not read first
// what is written, where lines of a block are lines of the cache.
struct Result {
    uint16_t* values;
    int64_t stride;
    bool turned, streamed;
};

LIUYI_INLINE __m512i round_line(const float* sums) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(sums + 16), load(sums)));
}

// So many lines of so many numbers each, of up to 32.
template <class Line>
LIUYI_INLINE void store_lines(uint16_t* to, const Result& out, int lines, int numbers, const Line& line) {
    if (out.streamed && numbers == kBlock) {
        for (int i = 0; i < lines; ++i) _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i * out.stride), line(i));
        return;
    }
    const __mmask32 seen = numbers < kBlock ? (1u << numbers) - 1 : ~0u;
    for (int i = 0; i < lines; ++i) _mm512_mask_storeu_epi16(to + i * out.stride, seen, line(i));
}

// A block of sums as bfloat16, as many of the 32 × 32 as there are from `row` and `column` on.
void round_block(const float* sums, int row, int column, int rows, int columns, const Result& out) {
    const int high = std::min(kBlock, rows - row), wide = std::min(kBlock, columns - column);
    if (!out.turned) {
        store_lines(out.values + row * out.stride + column, out, high, wide, [&](int i) { return round_line(sums + i * kBlock); });
        return;
    }
    alignas(64) uint16_t rounded[kBlockSize], turned[kBlockSize];
    for (int i = 0; i < kBlock; ++i) _mm512_store_si512(rounded + i * kBlock, round_line(sums + i * kBlock));
    pack_pairs<true>(rounded, kBlock, turned);
    store_lines(out.values + column * out.stride + row, out, wide, high,
                [&](int i) { return _mm512_load_si512(turned + i * kBlock); });
}

// How a product is cut, in blocks: rows and columns of a part, and what of the inner dimension is packed of the right
// operand and of a row of the left one at a time.
struct Cut {
    int rows, columns, depth, chunk;
};

// The cut whose parts fit the caches, come out even for the threads, and cost least.
Cut cut_of(const Operand& right, int rows, int columns, int inner, int threads) {
    // Of packing a block and of keeping the sums of one, in products of two blocks.
    const double left_cost = 0.4, right_cost = right.across ? 1.5 : 0.5, sums_cost = 2.0;
    Cut best{};
    double least = -1.0;
    for (int across = 1; across <= columns; ++across) {
        const int wide = parts_of(columns, across);
        const int depths = parts_of(inner, std::max<int>(kCacheBlocks / wide, 1));
        const int most_rows = depths > 1 ? std::max(kCacheBlocks / 2 / wide, 1) : rows;
        int down = parts_of(rows, most_rows);
        while (down < rows && across * down % threads != 0) ++down;
        const int tall = parts_of(rows, down), turns = parts_of(across * down, threads);
        const double packing = inner * (rows * left_cost * across + columns * right_cost * down);
        const double cost = packing + sums_cost * rows * columns * (depths - 1) + double(turns) * threads * tall * wide * inner;
        if (least < 0.0 || cost < least) {
            const int depth = parts_of(inner, depths);
            least = cost;
            best = {tall, wide, depth, parts_of(depth, parts_of(depth, kLongestChunk))};
        }
    }
    return best;
}

// Some columns of a right operand, chunk by chunk of the inner dimension; in blocks.
void pack_right(const Operand& right, int first, int last, int columns, int begin, int end, int chunk, int inner, uint16_t* to) {
    for (int k = begin; k < end; k += chunk) {
        const int count = std::min(chunk, end - k), lines = last - first;
        // Along what is neighbours in memory.
        for (int i = 0; i < count * lines; ++i) {
            const int column = right.across ? i / count : i % lines, at = right.across ? i % count : i / lines;
            pack_block<Side::kRight>(right, (first + column) * kBlock, columns, (k + at) * kBlock, inner,
                                     to + (column * count + at) * kBlockSize);
        }
        to += int64_t{count} * lines * kBlockSize;
    }
}

// So many blocks of a row of a left operand, from block `k` on.
void pack_row(const Operand& left, int row, int rows, int k, int count, int inner, uint16_t* to) {
    for (int i = 0; i < count; ++i) {
        pack_block<Side::kLeft>(left, row * kBlock, rows, (k + i) * kBlock, inner, to + i * kBlockSize);
    }
}

// All of a left operand, row after row, in memory that lasts until the next one.
const uint16_t* pack_left(const Team& team, const Operand& left, int rows, int inner) {
    thread_local Buffer memory;
    const int64_t row_size = int64_t{parts_of(inner, kBlock)} * kBlockSize;
    memory.grow(parts_of(rows, kBlock) * row_size * 2);
    uint16_t* to = memory.as<uint16_t>();
    for_each_part(team, parts_of(rows, kBlock), [&](int row) {
        pack_row(left, row, rows, 0, parts_of(inner, kBlock), inner, to + row * row_size);
    });
    return to;
}

// A row of blocks times some columns of blocks. Sums begin at zero with the first chunk of the inner dimension; those of the
// last one are given to `finish`, others kept.
template <class Finish>
LIUYI_INLINE void multiply_row(const uint16_t* left, const uint16_t* right, int blocks, int columns, bool first, bool last,
                               float* sums, const Finish& finish) {
    alignas(64) float finished[kBlockSize];
    for (int column = 0; column < columns; ++column, sums += kBlockSize, right += blocks * kBlockSize) {
        if (first) clear_sums();
        else load_sums(sums, kBlock);
        multiply(left, right, blocks);
        store_sums(last ? finished : sums, kBlock);
        if (last) finish(column, finished);
    }
}

void multiply_in_parts(const Team& team, const Operand& left, const Operand& right, int rows, int columns, int inner,
                       const Result& out) {
    const int row_blocks = parts_of(rows, kBlock), column_blocks = parts_of(columns, kBlock);
    const int inner_blocks = parts_of(inner, kBlock);
    const Cut cut = cut_of(right, row_blocks, column_blocks, inner_blocks, team.threads);
    const int down = parts_of(row_blocks, cut.rows), across = parts_of(column_blocks, cut.columns);
    // Turning numbers takes long enough to do it once for all parts.
    const uint16_t* for_all = left.across ? pack_left(team, left, rows, inner) : nullptr;
    for_each_part(team, down * across, [&](int part) {
        const int first_row = part % down * cut.rows, first_column = part / down * cut.columns;
        const int end_row = std::min(first_row + cut.rows, row_blocks);
        const int end_column = std::min(first_column + cut.columns, column_blocks);
        const int64_t left_size = int64_t{cut.chunk} * kBlockSize, right_size = int64_t{cut.columns} * cut.depth * kBlockSize;
        // Where all of the inner dimension is packed at once, sums are kept for one row of blocks at a time.
        const int kept_rows = inner_blocks > cut.depth ? cut.rows : 1;
        thread_local Buffer memory;
        memory.grow((left_size + right_size) * 2 + int64_t{kept_rows} * cut.columns * kBlockSize * 4);
        uint16_t *packed_left = memory.as<uint16_t>(), *packed_right = packed_left + left_size;
        float* sums = reinterpret_cast<float*>(packed_right + right_size);
        const Tiles tiles;
        for (int begin = 0; begin < inner_blocks; begin += cut.depth) {
            const int end = std::min(begin + cut.depth, inner_blocks);
            pack_right(right, first_column, end_column, columns, begin, end, cut.chunk, inner, packed_right);
            for (int row = first_row; row < end_row; ++row) {
                const uint16_t* from = packed_right;
                for (int k = begin; k < end; k += cut.chunk) {
                    const int count = std::min(cut.chunk, end - k);
                    const uint16_t* line = packed_left;
                    if (left.across) line = for_all + (int64_t{row} * inner_blocks + k) * kBlockSize;
                    else pack_row(left, row, rows, k, count, inner, packed_left);
                    float* so_far = sums + int64_t{kept_rows > 1 ? row - first_row : 0} * cut.columns * kBlockSize;
                    const bool last = k + count == inner_blocks;
                    const auto finish = [&](int column, const float* block) {
                        round_block(block, row * kBlock, (first_column + column) * kBlock, rows, columns, out);
                    };
                    multiply_row(line, from, count, end_column - first_column, k == 0, last, so_far, finish);
                    from += int64_t{count} * (end_column - first_column) * kBlockSize;
                }
            }
        }
        _mm_sfence();  // What was streamed is seen by whoever waits for this part.
    });
}

}  // namespace

void product(const Team& team, const Operand& left, const Operand& right, int rows, int columns, int inner, uint16_t* out,
             int64_t out_stride) {
    // (left · right)ᵀ = rightᵀ · leftᵀ: of two operands that are summed over their rows the smaller is packed as the left one.
    const bool turned = left.across && !right.across && rows > columns;
    const bool in_lines = reinterpret_cast<uintptr_t>(out) % 64 == 0 && out_stride % kBlock == 0;
    const bool streamed = in_lines && int64_t{rows} * columns > kCacheNumbers;
    const auto as_other = [](const Operand& one) { return Operand{one.values, one.stride, !one.across}; };
    if (turned) multiply_in_parts(team, as_other(right), as_other(left), columns, rows, inner, {out, out_stride, true, streamed});
    else multiply_in_parts(team, left, right, rows, columns, inner, {out, out_stride, false, streamed});
}

}  // namespace liuyi
