// Cuts a batch into work: pieces of the cache to fill, blocks of tokens, and units of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "step.h"

namespace liuyi {

struct BatchView {
    int32_t tokens, sequences, most_blocks, rows;
    int32_t angles;           // rows of cosines and sines
    int32_t angles_by_token;  // whether these are for the tokens in their order; for positions 0, 1, … if not
    const int32_t *ids;       // [tokens]
    const int32_t *counts;    // [sequences]
    const int32_t *lengths;   // [sequences]
    const int32_t *tables;    // [sequences, most_blocks]
    const int32_t *wanted;    // [rows]
    const int32_t *adapters;  // [sequences]
    const float *cosines, *sines;  // [angles, head_dim / 2]
    // The layers that the last sequence's tokens go through, where they do not go through all of them: end_layer is 0 then.
    // Their residual stream is taken from `residual`, except by the first layer, and left there, except by the last.
    int32_t first_layer, end_layer;
    float* residual;  // [tokens of the last sequence, hidden]
    // Where tokens are chosen, of each row [rows]: the temperature, 0 for the likeliest token, and the noise's key; or null.
    const float* temperatures;
    const uint64_t* keys;
};

// The attention work for one width of window; `Plan` is the view that the kernels get.
struct AttentionPlan {
    int window = 0;
    std::vector<Tile> tiles;
    std::vector<Unit> units;
    std::vector<int> tile_of_token;
    size_t partial_rows = 0;

    void build(const BatchView& batch, const Shape& shape, int window, int threads);
    Plan view() const { return {window, tiles.data(), units.data(), static_cast<int>(units.size()), tile_of_token.data()}; }
};

// Where each token lies: its position, and the pieces of blocks that the new tokens fill.
struct Placement {
    std::vector<int> positions;
    std::vector<Piece> pieces;
    std::vector<Block> blocks;
    int block_rows = 0;  // the most tokens of a block

    void build(const BatchView& batch);
    // Cut the tokens into so many blocks, of about the same number.
    void cut(int tokens, int count);
};

}  // namespace liuyi
