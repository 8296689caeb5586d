// product.h with AMX: tiles 0–3 hold sums of 32 × 32, 4 and 5 the left operand, 6 and 7 the right one.
//
// After Goto and van de Geijn (2008, "Anatomy of High-Performance Matrix Multiplication"): a part packs its columns of the
// right operand for the L2 cache, and of the left one 32 rows at a time for the L1 cache. Of a packed block of 32 × 32 the
// left one's tiles hold 16 rows of 32 numbers each, the right one's 16 pairs of rows of 16 columns each.

#include "product.h"

#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "product_finish.h"
#include "tiles.h"

namespace liuyi {

using namespace LIUYI_ISA;

namespace {

constexpr int kLongestChunk = 18;  // a row of so many blocks, and sums, fit the L1 cache
constexpr int kCacheBlocks = 640;  // so many fit the L2 cache beside what streams past: 1.25 MiB
constexpr int kFullCacheBlocks = 1024;  // and so many with sums that are kept there, a block of which counts twice: 2 MiB
constexpr int64_t kCacheNumbers = 1 << 20;  // so many do not, with what else is there
constexpr int kBlocksAhead = 2;  // asked for before they are packed

int parts_of(int count, int each) { return (count + each - 1) / each; }

enum class Side { kLeft, kRight };

// A block of an operand as it lies in memory, as many of 32 rows of 32 numbers as there are, and where it is packed.
struct Block {
    const uint16_t* from;
    int64_t stride;
    int rows, numbers;
    bool by_line;  // The lines lie one after the other, unless the inner dimension does.
    uint16_t* to;
};

// The one that begins at `line` (a row of the left operand, a column of the right one) and `inner`.
template <Side side>
Block block_of(const Operand& operand, int line, int lines, int inner, int inners, uint16_t* to) {
    const int seen_lines = std::min(kBlock, lines - line), seen_inners = std::min(kBlock, inners - inner);
    const bool by_line = (side == Side::kLeft) != operand.across;
    const uint16_t* from = operand.values + (by_line ? line * operand.stride + inner : inner * operand.stride + line);
    if (by_line) return {from, operand.stride, seen_lines, seen_inners, true, to};
    return {from, operand.stride, seen_inners, seen_lines, false, to};
}

// Zero beyond the end of the operand.
template <Side side>
void pack(Block block) {
    alignas(64) uint16_t edge[kBlockSize];
    if (block.rows < kBlock || block.numbers < kBlock) {
        std::memset(edge, 0, sizeof(edge));
        for (int i = 0; i < block.rows; ++i) std::memcpy(edge + i * kBlock, block.from + i * block.stride, block.numbers * 2);
        block.from = edge;
        block.stride = kBlock;
    }
    if (block.by_line) pack_rows<side == Side::kRight>(block.from, block.stride, block.to);
    else pack_pairs<side == Side::kLeft>(block.from, block.stride, block.to);
}

// Pack blocks one after the other, and ask for the memory of those that follow: their rows lie too far apart for the processor
// to do so by itself.
template <Side side, class At>
LIUYI_INLINE void pack_blocks(int count, const At& at) {
    const auto ask_for = [&](int i) {
        if (i >= count) return;
        const Block block = at(i);
        for (int row = 0; row < block.rows; ++row) __builtin_prefetch(block.from + row * block.stride);
    };
    for (int i = 0; i < kBlocksAhead; ++i) ask_for(i);
    for (int i = 0; i < count; ++i) {
        ask_for(i + kBlocksAhead);
        pack<side>(at(i));
    }
}

// sums += left · right, over so many blocks of both, with some other work beside each: the core has time for it while the unit
// multiplies. The right one streams past: it must not drive the left one, which is used again, out of the L1 cache.
template <class Beside>
LIUYI_INLINE void multiply(const uint16_t* left, const uint16_t* right, int blocks, const Beside& beside) {
    for (int k = 0; k < blocks; ++k, left += kBlockSize, right += kBlockSize) {
        _tile_loadd(4, left, 64);
        _tile_stream_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, left + kTile, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_stream_loadd(7, right + kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        beside();
    }
}

// The columns of a right operand, in the order that they are multiplied in: as they are, or those of two halves by turns, a
// block of each.
struct Columns {
    int count, half = 0;
    int begin(int block) const { return half == 0 ? block * kBlock : block / 2 * kBlock + block % 2 * half; }
};

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
        const bool keeps_sums = wide * inner > kCacheBlocks;
        int down = parts_of(rows, keeps_sums ? std::max(kCacheBlocks / 2 / wide, 1) : rows);
        while (down < rows && across * down % threads != 0) ++down;
        const int tall = parts_of(rows, down), turns = parts_of(across * down, threads);
        const int room = keeps_sums ? kFullCacheBlocks - 2 * wide * tall : kCacheBlocks;
        const int depths = parts_of(inner, std::max(room / wide, 1));
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
void pack_right(const Operand& right, int first, int last, const Columns& columns, int begin, int end, int chunk, int inner,
                uint16_t* to) {
    for (int k = begin; k < end; k += chunk) {
        const int count = std::min(chunk, end - k), lines = last - first;
        // Along what is neighbours in memory.
        pack_blocks<Side::kRight>(count * lines, [&](int i) {
            const int column = right.across ? i / count : i % lines, at = right.across ? i % count : i / lines;
            return block_of<Side::kRight>(right, columns.begin(first + column), columns.count, (k + at) * kBlock, inner,
                                          to + (column * count + at) * kBlockSize);
        });
        to += int64_t{count} * lines * kBlockSize;
    }
}

// So many blocks of a row of a left operand, from block `k` on.
void pack_row(const Operand& left, int row, int rows, int k, int count, int inner, uint16_t* to) {
    pack_blocks<Side::kLeft>(count, [&](int i) {
        return block_of<Side::kLeft>(left, row * kBlock, rows, (k + i) * kBlock, inner, to + i * kBlockSize);
    });
}

// All of a left operand that lies across, row after row, in memory that lasts until the next one.
const uint16_t* pack_left(const Team& team, const Operand& left, int rows, int inner) {
    thread_local Buffer memory;
    const int row_blocks = parts_of(rows, kBlock), inner_blocks = parts_of(inner, kBlock);
    memory.grow(int64_t{row_blocks} * inner_blocks * kBlockSize * 2);
    uint16_t* to = memory.as<uint16_t>();
    for_each_part(team, inner_blocks, [&](int k) {
        pack_blocks<Side::kLeft>(row_blocks, [&](int row) {
            return block_of<Side::kLeft>(left, row * kBlock, rows, k * kBlock, inner,
                                         to + (int64_t{row} * inner_blocks + k) * kBlockSize);
        });
    });
    return to;
}

// A row of blocks times some columns of blocks. Sums begin at zero with the first chunk of the inner dimension; those of the
// last one are finished while the next block is multiplied, others kept.
template <class Sink>
LIUYI_INLINE void multiply_row(const uint16_t* left, const uint16_t* right, int blocks, int row, int first_column, int end_column,
                               bool first, bool last, float* sums, Finish<Sink>& finish) {
    const int lines = parts_of(kBlock, blocks);
    for (int column = first_column; column < end_column; ++column, sums += kBlockSize, right += blocks * kBlockSize) {
        if (first) clear_sums();
        else load_sums(sums, kBlock);
        if (last) finish.expect(row * kBlock, column * kBlock);
        multiply(left, right, blocks, [&] { finish.some(lines); });
        store_sums(last ? finish.sums() : sums, kBlock);
        if (last) finish.begin();
    }
}

// Each part has a sink of its own.
template <class MakeSink>
void multiply_in_parts(const Team& team, const Operand& left, const Operand& right, int rows, const Columns& columns, int inner,
                       const MakeSink& make_sink) {
    const int row_blocks = parts_of(rows, kBlock), column_blocks = parts_of(columns.count, kBlock);
    const int inner_blocks = parts_of(inner, kBlock);
    Cut cut = cut_of(right, row_blocks, column_blocks, inner_blocks, team.threads);
    if (columns.half != 0) cut.columns += cut.columns % 2;  // What belongs together stays together.
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
        auto sink = make_sink();
        Finish finish(sink);
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
                    multiply_row(line, from, count, row, first_column, end_column, k == 0, last, so_far, finish);
                    from += int64_t{count} * (end_column - first_column) * kBlockSize;
                }
            }
        }
        finish.some(kBlock);
        _mm_sfence();  // What was streamed is seen by whoever waits for this part.
    });
}

}  // namespace

void product(const Team& team, const Operand& left, const Operand& right, int rows, int columns, int inner, uint16_t* out,
             int64_t out_stride) {
    // (left · right)ᵀ = rightᵀ · leftᵀ: of two operands that are summed over their rows the smaller is packed as the left one.
    const bool turned = left.across && !right.across && rows > columns;
    // What is summed over rows of both is the gradient of a weight, which nobody reads soon.
    const bool reread = int64_t{rows} * columns <= kCacheNumbers && !(left.across && !right.across);
    const bool in_lines = reinterpret_cast<uintptr_t>(out) % 64 == 0 && out_stride % kBlock == 0;
    const bool streamed = in_lines && !reread;
    const auto as_other = [](const Operand& one) { return Operand{one.values, one.stride, !one.across}; };
    if (turned) {
        const Result result{out, out_stride, columns, rows, true, streamed};
        multiply_in_parts(team, as_other(right), as_other(left), columns, {rows}, inner, [&] { return ResultSink(result); });
    } else {
        const Result result{out, out_stride, rows, columns, false, streamed};
        multiply_in_parts(team, left, right, rows, {columns}, inner, [&] { return ResultSink(result); });
    }
}

void product_swiglu(const Team& team, const Operand& left, const Operand& right, int rows, int width, int inner, uint16_t* gate_up,
                    uint16_t* activated) {
    multiply_in_parts(team, left, right, rows, {2 * width, width}, inner,
                      [&] { return SwigluSink(gate_up, activated, rows, width); });
}

}  // namespace liuyi
