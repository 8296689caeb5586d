// Attention over the paged cache for one unit of work.
//
// A row is one query head of one token; the rows of a tile are its tokens' heads that share a kv head. For each span of
// 256 keys a row's softmax is taken by itself; spans are joined from the first to the last. What a row gets depends
// on its own query and keys only, in an order that nothing else in the batch changes.
#pragma once

#include "kv.h"

namespace liuyi {
namespace LIUYI_ISA {

// The keys of a span that the tokens of a tile see, all together; `heads` is where the kv head lies in the cache's first
// block.
LIUYI_INLINE Sight look(const Step& step, int window, const Tile& tile, const uint8_t* heads, int span) {
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
    for (int block = 0; block < sight.blocks; ++block) sight.heads[block] = heads + table[block] * step.kv.block_bytes;
    return sight;
}

// What each row of a tile sees of them.
LIUYI_INLINE void look_from(Range rows, const int* positions, int group, int window, Sight& sight) {
    for (int row = rows.begin; row < rows.end; ++row) {
        const int position = positions[row / group];
        const int from = (window > 0 && position >= window ? position - window + 1 : 0) - sight.origin;
        const int to = position + 1 - sight.origin, end = sight.keys();
        const int low = from > 0 ? from : 0, high = to < end ? to : end;
        sight.low[row - rows.begin] = low < high ? low : 0;
        sight.high[row - rows.begin] = low < high ? high : 0;
    }
}

// The softmax of rows over the keys in sight, and values mixed with it.
template <class Kv>
LIUYI_INLINE void attend_rows(typename Kv::Session& session, int rows, const uint8_t* queries, const KvLayout& kv,
                              const Sight& sight, const Work& work, Results& results) {
    float units[kMostKernelRows];
    Kv::score(session, rows, queries, kv, sight, work);
    for (int r = 0; r < rows; ++r) {
        units[r] = Kv::unit(queries + r * kv.query_bytes, kv.dim);
        results.most[r] = units[r] * highest(work.scores + r * kSpanTokens, sight.seen(r));
    }
    Kv::weigh(rows, units, sight, kv.dim, work, results);
    Kv::mix(session, rows, sight, kv.dim, work);
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

    work.all.clear(count);
    for (int span = unit.first_span; span < unit.end_span; ++span) {
        if (span == unit.first_span || span % kStretchSpans == 0) work.stretch.clear(count);
        Sight sight = look(step, plan.window, tile, heads, span);
        sight.once = chunks == 1;
        if (sight.blocks > 0) Kv::open_span(session, sight, dim, work);
        for (int chunk = 0; sight.blocks > 0 && chunk < chunks; ++chunk) {
            const Range rows{static_cast<int>(static_cast<int64_t>(count) * chunk / chunks),
                             static_cast<int>(static_cast<int64_t>(count) * (chunk + 1) / chunks)};
            const int here = rows.end - rows.begin;
            Results results{};
            look_from(rows, step.positions + tile.token, group, plan.window, sight);
            attend_rows<Kv>(session, here, queries + rows.begin * step.kv.query_bytes, step.kv, sight, work, results);
            join_rows(work.stretch.from(rows.begin, dim), work.mixed, results.most, results.total, here, dim);
        }
        if (tile.unit_spans == 0 && (span + 1 == unit.end_span || (span + 1) % kStretchSpans == 0)) {
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
        const Joined done = work.all.from(row, dim);
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
