// Attention over the paged cache for one unit of work.
//
// A row is one query head of one token; the rows of a tile are its tokens' heads that share a kv head. For each span of
// 256 keys a row's softmax is taken by itself; spans are joined from the first to the last. What a row gets depends
// on its own query and keys only, in an order that nothing else in the batch changes.
#pragma once

#include "kv_float.h"
#include "kv_int8.h"
#ifdef LIUYI_HAS_TILES
#include "kv_amx_bf16.h"
#include "kv_amx_int8.h"
#endif

namespace liuyi {
namespace LIUYI_ISA {

// Where the keys that a unit sees first lie; a hint, for there may be no such unit.
LIUYI_INLINE const uint8_t* first_keys(const Step& step, const Plan& plan, int index, int layer) {
    const Unit& unit = plan.units[index < plan.unit_count ? index : plan.unit_count - 1];
    const Tile& tile = plan.tiles[unit.tile];
    const int32_t* table = step.tables + static_cast<size_t>(tile.sequence) * step.most_blocks;
    const uint8_t* block = step.cache + table[unit.first_span * kSpanBlocks] * step.kv.block_bytes;
    return block + layer * step.kv.layer_bytes + unit.kv_head * step.kv.head_bytes;
}

// The keys of a span that the tokens of a tile see, all together; `heads` is where the kv head lies in the cache's first
// block, `after` what is read after these keys if they are the last.
LIUYI_INLINE Sight look(const Step& step, int window, const Tile& tile, const uint8_t* heads, int span,
                        const uint8_t* after) {
    const int first = step.positions[tile.token], last = first + tile.count - 1, begin = span * kSpanTokens;
    int from = window > 0 && first >= window ? first - window + 1 : 0, to = last + 1;
    if (from < begin) from = begin;
    if (to > begin + kSpanTokens) to = begin + kSpanTokens;
    Sight sight;
    if (from >= to) return sight;
    const int first_block = from / kBlockTokens;
    sight.origin = first_block * kBlockTokens;
    sight.blocks = (to - 1) / kBlockTokens + 1 - first_block;
    const int32_t* table = step.tables + static_cast<size_t>(tile.sequence) * step.most_blocks + first_block;
    const bool more = (first_block + sight.blocks) * kBlockTokens <= last;
    for (int block = 0; block < sight.blocks; ++block) sight.heads[block] = heads + table[block] * step.kv.block_bytes;
    sight.heads[sight.blocks] = more ? heads + table[sight.blocks] * step.kv.block_bytes : after;
    return sight;
}

// What each row of a tile sees of them, and what all of them see.
LIUYI_INLINE void look_from(Range rows, const int* positions, int group, int window, Sight& sight) {
    const int end = sight.keys();
    sight.low_of_all = 0;
    sight.high_of_all = end;
    int token = rows.begin / group, head = rows.begin % group;
    for (int row = 0; row < rows.end - rows.begin; ++row) {
        const int position = positions[token];
        const int from = (window > 0 && position >= window ? position - window + 1 : 0) - sight.origin;
        const int to = position + 1 - sight.origin;
        const int low = from > 0 ? from : 0, high = to < end ? to : end;
        sight.low[row] = low < high ? low : 0;
        sight.high[row] = low < high ? high : 0;
        if (sight.low[row] > sight.low_of_all) sight.low_of_all = sight.low[row];
        if (sight.high[row] < sight.high_of_all) sight.high_of_all = sight.high[row];
        if (++head == group) {
            head = 0;
            ++token;
        }
    }
}

// Partial results lie as [row][part of the tile's spans].
LIUYI_INLINE Partial partial_at(const Step& step, const Tile& tile, int row, int part) {
    const size_t index = tile.partials + static_cast<size_t>(row) * tile.parts() + part;
    float* memory = step.partials + index * partial_floats(step.kv.dim);
    return Partial{memory, memory[step.kv.dim], memory[step.kv.dim + 1]};
}

LIUYI_INLINE void keep_partials(const Step& step, const Tile& tile, int first_row, int part, const Joined& joined, int rows) {
    const int dim = step.kv.dim;
    for (int r = 0; r < rows; ++r) {
        const Partial slot = partial_at(step, tile, first_row + r, part);
        if (joined.total[r] != 0) std::memcpy(slot.mixed, joined.mixed + r * dim, dim * sizeof(float));
        slot.mixed[dim] = joined.most[r];
        slot.mixed[dim + 1] = joined.total[r];
    }
}

// One unit: results of whole tiles go to `attended`, those of others to the partials.
template <class Kv>
void attend(const Step& step, const Plan& plan, const Unit& unit, int layer, uint8_t* memory) {
    const Tile& tile = plan.tiles[unit.tile];
    const Shape& shape = step.shape;
    const int group = shape.heads / shape.kv_heads, dim = step.kv.dim, count = tile.count * group;
    const Work work = lay_out(memory, dim, tile_tokens(shape) * group);
    const uint8_t* heads = step.cache + layer * step.kv.layer_bytes + unit.kv_head * step.kv.head_bytes;
    const uint8_t* queries =
        step.queries + (static_cast<size_t>(unit.kv_head) * step.tokens + tile.token) * group * step.kv.query_bytes;
    const int chunks = (count + Kv::kMostRows - 1) / Kv::kMostRows;
    typename Kv::Session session((count + chunks - 1) / chunks);

    const int stretches = (unit.end_span - 1) / kStretchSpans - unit.first_span / kStretchSpans + 1;
    work.all.clear(count);
    for (int span = unit.first_span; span < unit.end_span; ++span) {
        const bool first = span == unit.first_span || span % kStretchSpans == 0;
        if (first) work.stretch.clear(count);
        const bool last = span + 1 == unit.end_span;
        const uint8_t* after = last ? first_keys(step, plan, step.tickets[layer].next(), layer) : heads;
        Sight sight = look(step, plan.window, tile, heads, span, after);
        sight.once = chunks == 1;
        if (sight.blocks > 0) Kv::open_span(session, sight, dim, work);
        for (int chunk = 0; sight.blocks > 0 && chunk < chunks; ++chunk) {
            const Range rows{static_cast<int>(static_cast<int64_t>(count) * chunk / chunks),
                             static_cast<int>(static_cast<int64_t>(count) * (chunk + 1) / chunks)};
            const int here = rows.end - rows.begin;
            const Joined joined = work.stretch.from(rows.begin, dim);
            Results results{};
            Work own = work;
            if (first) own.mixed = joined.mixed;
            look_from(rows, step.positions + tile.token, group, plan.window, sight);
            Kv::attend_span(session, here, queries + rows.begin * step.kv.query_bytes, step.kv, sight, own, results);
            if (first) joined.take(results, here);
            else join_rows(joined, own.mixed, results.most, results.total, here, dim);
        }
        if (stretches > 1 && (span + 1 == unit.end_span || (span + 1) % kStretchSpans == 0)) {
            for (int row = 0; row < count; row += kMostKernelRows) {
                const Joined next = work.stretch.from(row, dim);
                const int here = count - row < kMostKernelRows ? count - row : kMostKernelRows;
                join_rows(work.all.from(row, dim), next.mixed, next.most, next.total, here, dim);
            }
        }
    }
    if (tile.unit_spans > 0) {
        keep_partials(step, tile, unit.kv_head * count, tile.part_of(unit.first_span), work.stretch, count);
        return;
    }
    for (int row = 0; row < count; ++row) {
        const int head = unit.kv_head * group + row % group;
        float* out = step.attended + (static_cast<size_t>(tile.token + row / group) * shape.heads + head) * shape.head_dim;
        const Joined done = (stretches > 1 ? work.all : work.stretch).from(row, dim);
        finish(Partial{done.mixed, done.most[0], done.total[0]}, shape.head_dim, out);
    }
}

// A row's partials joined as `attend` joins spans: within stretches first.
LIUYI_INLINE Partial join_parts(const Step& step, const Tile& tile, int row) {
    Partial all{nullptr, kUnseen, 0.0f}, stretch = all;
    const auto add = [&](Partial& into, const Partial& next) {
        if (next.total == 0) return;
        if (into.mixed == nullptr) into = next;
        else join(into, next, step.kv.dim);
    };
    for (int part = 0, parts = tile.parts(); part < parts; ++part) {
        const int end = (tile.first_span / tile.unit_spans + part + 1) * tile.unit_spans;
        add(stretch, partial_at(step, tile, row, part));
        if (part + 1 < parts && end % kStretchSpans != 0) continue;
        add(all, stretch);
        stretch = Partial{nullptr, kUnseen, 0.0f};
    }
    return all;
}

// Join the parts of one token whose tile was cut, for all its heads.
inline void join_token(const Step& step, const Plan& plan, int token) {
    const Tile& tile = plan.tiles[plan.tile_of_token[token]];
    if (tile.unit_spans == 0) return;
    const Shape& shape = step.shape;
    const int group = shape.heads / shape.kv_heads;
    for (int head = 0; head < shape.heads; ++head) {
        const int row = head / group * tile.count * group + (token - tile.token) * group + head % group;
        const Partial joined = join_parts(step, tile, row);
        finish(joined, shape.head_dim, step.attended + (static_cast<size_t>(token) * shape.heads + head) * shape.head_dim);
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
