// What attention over one span of keys works on: the blocks in sight, and a thread's scratch memory.
#pragma once

#include "softmax.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {

// The blocks of a span in which the rows of a unit see keys, and which keys some of these rows see.
struct Sight {
    // Where a kv head lies in each block, and in the one that is read after them, of this unit or the next.
    const uint8_t* heads[kSpanBlocks + 1];
    int blocks = 0, origin = 0;  // 0 blocks if no row sees a key; the position of the first one's first key
    bool once;                   // whether there are no other rows
    // Row r sees keys low[r]..high[r], counted from the first block; every row sees low_of_all..high_of_all.
    int low[kMostKernelRows] = {}, high[kMostKernelRows] = {};
    int low_of_all, high_of_all;

    Seen seen(int row) const { return {low[row], high[row]}; }
    int keys() const { return blocks * kBlockTokens; }
    const uint8_t* next(int block) const { return heads[block + 1]; }
};

// Scratch of one thread.
struct Work {
    float* scores;    // [most rows][256]: scores, then weights; or both, of half as many rows
    float* mixed;     // [most rows][dim]: what the rows of a kernel get of a span
    uint8_t* packed;  // [most rows][256] weights of two bytes, or of two digits of a byte each
    float* scales;    // [most rows], of the packed weights
    float* sums;      // [4][16][16]
    uint8_t* values;  // [256][dim] bytes
    Joined stretch, all;  // of the rows of a tile

    float* weights(int row) const { return scores + (kMostKernelRows / 2 + row) * kSpanTokens; }
    uint8_t* digits(int row, int digit) const { return packed + (digit * kMostKernelRows + row) * kSpanTokens; }
};

LIUYI_INLINE Work lay_out(uint8_t* memory, int dim, int tile_rows) {
    const int room = tile_rows + kMostKernelRows;  // kernels write whole vectors, and whole tiles
    Work work;
    work.scores = reinterpret_cast<float*>(memory);
    work.mixed = work.scores + kMostKernelRows * kSpanTokens;
    work.packed = reinterpret_cast<uint8_t*>(work.mixed + kMostKernelRows * dim);
    work.scales = reinterpret_cast<float*>(work.packed + 2 * kMostKernelRows * kSpanTokens);
    work.sums = work.scales + kMostKernelRows;
    work.values = reinterpret_cast<uint8_t*>(work.sums + kTileSums);
    float* next = reinterpret_cast<float*>(work.values + kSpanTokens * dim);
    for (Joined* joined : {&work.stretch, &work.all}) {
        joined->mixed = next;
        joined->most = joined->mixed + static_cast<size_t>(room) * dim;
        joined->total = joined->most + room;
        next = joined->total + room;
    }
    return work;
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
