#include "plan.h"

#include <algorithm>

namespace liuyi {
namespace {

// A unit is to be no more than this share of a thread's work, or is cut: a tile into stretches, or into spans.
constexpr int kUnitsPerThread = 3;

}  // namespace

void AttentionPlan::build(const BatchView& batch, const Shape& shape, int width, int threads) {
    window = width;
    tiles.clear();
    units.clear();
    tile_of_token.resize(batch.tokens);
    partial_rows = 0;
    const int most = tile_tokens(shape);
    int64_t all_keys = 0;
    const auto keys_of = [](const Tile& tile) { return int64_t{tile.end_span - tile.first_span} * tile.count; };
    for (int sequence = 0, begin = 0; sequence < batch.sequences; begin += batch.counts[sequence++]) {
        for (int done = 0; done < batch.counts[sequence]; done += most) {
            const int count = std::min(most, batch.counts[sequence] - done);
            const int position = batch.lengths[sequence] + done;
            const int first_key = width > 0 ? std::max(0, position - width + 1) : 0;
            Tile tile{sequence, begin + done, count, first_key / kSpanTokens, (position + count - 1) / kSpanTokens + 1, 0, 0};
            std::fill_n(tile_of_token.begin() + tile.token, count, static_cast<int>(tiles.size()));
            all_keys += keys_of(tile);
            tiles.push_back(tile);
        }
    }
    const auto is_small = [&](int64_t keys) { return keys * threads * kUnitsPerThread <= all_keys * shape.kv_heads; };
    for (Tile& tile : tiles) {
        const int spans = tile.end_span - tile.first_span;
        if (threads == 1 || spans == 1 || is_small(keys_of(tile))) continue;
        tile.unit_spans = spans > kStretchSpans && is_small(int64_t{kStretchSpans} * tile.count) ? kStretchSpans : 1;
        tile.partials = static_cast<int>(partial_rows);
        partial_rows += static_cast<size_t>(tile.count) * shape.heads * tile.parts();
    }
    // Heads one after the other, so that their keys stay in a thread's cache; within each the longest first, so that
    // threads end together.
    std::vector<int> order(tiles.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return keys_of(tiles[a]) > keys_of(tiles[b]); });
    for (int head = 0; head < shape.kv_heads; ++head) {
        for (const int index : order) {
            const Tile& tile = tiles[index];
            if (tile.unit_spans == 0) {
                units.push_back({index, head, tile.first_span, tile.end_span});
                continue;
            }
            for (int span = tile.first_span, end; span < tile.end_span; span = end) {
                end = std::min((span / tile.unit_spans + 1) * tile.unit_spans, tile.end_span);
                units.push_back({index, head, span, end});
            }
        }
    }
}

void Placement::build(const BatchView& batch) {
    positions.clear();
    pieces.clear();
    for (int sequence = 0, token = 0; sequence < batch.sequences; ++sequence) {
        int position = batch.lengths[sequence];
        for (int left = batch.counts[sequence]; left > 0;) {
            const int count = std::min(left, kBlockTokens - position % kBlockTokens);
            pieces.push_back({token, count, sequence, position});
            for (int i = 0; i < count; ++i) positions.push_back(position + i);
            token += count;
            position += count;
            left -= count;
        }
    }
}

void Placement::cut(int tokens, int count) {
    blocks.clear();
    block_rows = 0;
    const int all = static_cast<int>(pieces.size());
    for (int i = 0, token = 0, piece = 0; i < count && piece < all; ++i) {
        Block block{token, 0, piece, piece};
        const int end = static_cast<int>(int64_t{tokens} * (i + 1) / count);
        while (piece < all && token < end) token += pieces[piece++].count;
        block.count = token - block.token;
        block.end_piece = piece;
        if (block.count > 0) blocks.push_back(block);
        block_rows = std::max(block_rows, block.count);
    }
}

}  // namespace liuyi
