// Attention over the paged cache for one unit of work, and the joining of spans (online softmax, arXiv 1805.02867).
//
// A row is one query head of one token; the rows of a tile are its tokens' heads that share a kv head. For each span of
// 256 keys a row's softmax is taken by itself; spans are joined from the first to the last. What a row gets depends
// on its own query and keys only, in an order that nothing else in the batch changes.
#pragma once

#include "kv.h"

namespace liuyi {
namespace LIUYI_ISA {

// The softmax of a row over some keys: values mixed with weights e^(score − most), and the sum of these weights.
struct Partial {
    float* mixed;  // [dim]
    float most, total;
};

constexpr float kUnseen = -1e30f;

LIUYI_INLINE void join(Partial& into, const Partial& next, int dim) {
    const float most = into.most > next.most ? into.most : next.most;
    alignas(64) float weights[kWidth] = {into.most - most, next.most - most};
    store(weights, exp(load(weights)));
    const Floats old_weight = all(weights[0]), new_weight = all(weights[1]);
    for (int d = 0; d < dim; d += kWidth) {
        store(into.mixed + d, fma(load(next.mixed + d), new_weight, mul(load(into.mixed + d), old_weight)));
    }
    into.total = into.total * weights[0] + next.total * weights[1];
    into.most = most;
}

LIUYI_INLINE void finish(const Partial& done, int head_dim, float* out) {
    const Floats share = all(1.0f / done.total);
    for (int d = 0; d < head_dim; d += kWidth) {
        const int left = head_dim - d;
        const Floats mixed = mul(load(done.mixed + d), share);
        if (left >= kWidth) store(out + d, mixed);
        else store_first(out + d, mixed, left);
    }
}

LIUYI_INLINE Floats zero_unseen(Floats weights, Floats scores) {
#if defined(__AVX512F__)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(scores, all(kUnseen), _CMP_NEQ_UQ), weights);
#else
    return _mm256_and_ps(weights, _mm256_cmp_ps(scores, all(kUnseen), _CMP_NEQ_UQ));
#endif
}

// Scores [keys] → weights in place; the row sees keys low..high. Returns the largest score and the sum of the weights.
LIUYI_INLINE void soften(float* scores, int keys, int low, int high, float& most, float& total) {
    for (int key = 0; key < low; ++key) scores[key] = kUnseen;
    for (int key = high; key < keys; ++key) scores[key] = kUnseen;
    Floats top = all(kUnseen);
    for (int key = 0; key < keys; key += kWidth) top = max(top, load(scores + key));
    most = largest(top);
    Floats sums = zero();
    for (int key = 0; key < keys; key += kWidth) {
        const Floats score = load(scores + key);
        const Floats weight = zero_unseen(exp(sub(score, all(most))), score);
        sums = add(sums, weight);
        store(scores + key, weight);
    }
    total = sum(sums);
}

// Scratch of one thread.
struct Work {
    float* scores;    // [most rows][256]
    float* mixed;     // [most rows][dim]
    uint8_t* digits;  // [2][most rows][256]
    float* joined;    // [rows of a tile][dim]
    float* most;      // [rows of a tile]
    float* total;
};

LIUYI_INLINE Work lay_out(uint8_t* memory, int dim, int tile_rows) {
    Work work;
    work.scores = reinterpret_cast<float*>(memory);
    work.mixed = work.scores + kMostKernelRows * kSpanTokens;
    work.digits = reinterpret_cast<uint8_t*>(work.mixed + kMostKernelRows * dim);
    work.joined = reinterpret_cast<float*>(work.digits + 2 * kMostKernelRows * kSpanTokens);
    work.most = work.joined + static_cast<size_t>(tile_rows) * dim;
    work.total = work.most + tile_rows;
    return work;
}

template <class Kv>
LIUYI_INLINE const uint8_t* values_of(const uint8_t* head, int dim) {
    return reinterpret_cast<const uint8_t*>(Kv::values(head, dim));
}

// R rows against the keys of `blocks` blocks. Row r sees keys low[r]..high[r], counted from the first block.
template <class Kv, int R>
void attend_rows(const uint8_t* queries, const KvLayout& kv, const uint8_t* const* heads, int blocks, const int* low,
                 const int* high, const Work& work, float* most, float* total) {
    for (int block = 0; block < blocks; ++block) {
        const Ahead ahead{heads[block + 1 < blocks ? block + 1 : block], values_of<Kv>(heads[block], kv.dim)};
        Kv::template scores<R>(queries, kv.query_bytes, heads[block], kv.dim, ahead, work.scores + block * kBlockTokens,
                               kSpanTokens);
    }
    for (int r = 0; r < R; ++r) {
        soften(work.scores + r * kSpanTokens, blocks * kBlockTokens, low[r], high[r], most[r], total[r]);
    }
    Kv::template mix<R>(work.scores, kSpanTokens, heads, blocks, kv.dim, work.digits, work.mixed);
}

template <class Kv, int R = Kv::kMostRows>
LIUYI_INLINE void attend_some(int rows, const uint8_t* queries, const KvLayout& kv, const uint8_t* const* heads,
                              int blocks, const int* low, const int* high, const Work& work, float* most, float* total) {
    if constexpr (R > 1) {
        if (rows < R) return attend_some<Kv, R - 1>(rows, queries, kv, heads, blocks, low, high, work, most, total);
    }
    attend_rows<Kv, R>(queries, kv, heads, blocks, low, high, work, most, total);
}

// Partial results lie as [row][span of the tile].
LIUYI_INLINE Partial partial_at(const Step& step, const Tile& tile, int row, int span) {
    const size_t index = tile.partials + static_cast<size_t>(row) * (tile.end_span - tile.first_span) + span - tile.first_span;
    float* memory = step.partials + index * partial_floats(step.kv.dim);
    return Partial{memory, memory[step.kv.dim], memory[step.kv.dim + 1]};
}

// One unit: results of whole tiles go to `attended`, those of single spans to the partials.
template <class Kv>
void attend(const Step& step, const Plan& plan, const Unit& unit, int layer, uint8_t* memory) {
    const Tile& tile = plan.tiles[unit.tile];
    const Shape& shape = step.shape;
    const int group = shape.heads / shape.kv_heads, dim = step.kv.dim, rows = tile.count * group;
    const Work work = lay_out(memory, dim, tile_tokens(shape) * group);
    const bool whole = tile.partials < 0;
    const int32_t* table = step.tables + static_cast<size_t>(tile.sequence) * step.most_blocks;
    const size_t offset = layer * step.kv.layer_bytes + unit.kv_head * step.kv.head_bytes;
    const uint8_t* queries =
        step.queries + (static_cast<size_t>(unit.kv_head) * step.tokens + tile.token) * group * step.kv.query_bytes;
    const int chunks = (rows + Kv::kMostRows - 1) / Kv::kMostRows;

    for (int span = unit.first_span; span < unit.end_span; ++span) {
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const int first = static_cast<int>(static_cast<int64_t>(rows) * chunk / chunks);
            const int end = static_cast<int>(static_cast<int64_t>(rows) * (chunk + 1) / chunks);
            int low[kMostKernelRows], high[kMostKernelRows];
            int first_key = (span + 1) * kSpanTokens, end_key = span * kSpanTokens;
            for (int row = first; row < end; ++row) {
                const int position = step.positions[tile.token + row / group];
                int from = plan.window > 0 && position >= plan.window ? position - plan.window + 1 : 0, to = position + 1;
                if (from < span * kSpanTokens) from = span * kSpanTokens;
                if (to > (span + 1) * kSpanTokens) to = (span + 1) * kSpanTokens;
                low[row - first] = from;
                high[row - first] = to;
                if (from < to) {
                    first_key = from < first_key ? from : first_key;
                    end_key = to > end_key ? to : end_key;
                }
            }
            float most[kMostKernelRows], total[kMostKernelRows];
            if (first_key < end_key) {
                const uint8_t* heads[kSpanBlocks];
                const int first_block = first_key / kBlockTokens, blocks = (end_key - 1) / kBlockTokens + 1 - first_block;
                for (int block = 0; block < blocks; ++block) {
                    heads[block] = step.cache + table[first_block + block] * step.kv.block_bytes + offset;
                }
                const int origin = first_block * kBlockTokens, keys = blocks * kBlockTokens;
                for (int r = 0; r < end - first; ++r) {
                    const bool sees = low[r] < high[r];
                    low[r] = sees ? low[r] - origin : keys;
                    high[r] = sees ? high[r] - origin : keys;
                }
                attend_some<Kv>(end - first, queries + first * step.kv.query_bytes, step.kv, heads, blocks, low, high, work,
                                most, total);
            }
            for (int row = first; row < end; ++row) {
                const int r = row - first;
                const bool seen = first_key < end_key && total[r] != 0;
                Partial result{work.mixed + r * dim, seen ? most[r] : kUnseen, seen ? total[r] : 0.0f};
                if (!whole) {
                    const Partial slot = partial_at(step, tile, unit.kv_head * rows + row, span);
                    if (seen) std::memcpy(slot.mixed, result.mixed, dim * sizeof(float));
                    slot.mixed[dim] = result.most;
                    slot.mixed[dim + 1] = result.total;
                    continue;
                }
                Partial joined{work.joined + row * dim, work.most[row], work.total[row]};
                if (span == unit.first_span) joined = Partial{joined.mixed, kUnseen, 0.0f};
                if (seen && joined.total == 0) {
                    std::memcpy(joined.mixed, result.mixed, dim * sizeof(float));
                    joined.most = result.most;
                    joined.total = result.total;
                } else if (seen) {
                    join(joined, result, dim);
                }
                work.most[row] = joined.most;
                work.total[row] = joined.total;
            }
        }
    }
    if (!whole) return;
    for (int row = 0; row < rows; ++row) {
        const int head = unit.kv_head * group + row % group;
        float* out = step.attended + (static_cast<size_t>(tile.token + row / group) * shape.heads + head) * shape.head_dim;
        finish(Partial{work.joined + row * dim, work.most[row], work.total[row]}, shape.head_dim, out);
    }
}

// Join the spans of one token whose tile was cut, for all its heads.
inline void join_token(const Step& step, const Plan& plan, int token) {
    const Tile& tile = plan.tiles[plan.tile_of_token[token]];
    if (tile.partials < 0) return;
    const Shape& shape = step.shape;
    const int group = shape.heads / shape.kv_heads, dim = step.kv.dim;
    for (int head = 0; head < shape.heads; ++head) {
        const int row = head / group * tile.count * group + (token - tile.token) * group + head % group;
        Partial joined{nullptr, kUnseen, 0.0f};
        for (int span = tile.first_span; span < tile.end_span; ++span) {
            const Partial next = partial_at(step, tile, row, span);
            if (next.total == 0) continue;
            if (joined.mixed == nullptr) joined = next;
            else join(joined, next, dim);
        }
        finish(joined, shape.head_dim, step.attended + (static_cast<size_t>(token) * shape.heads + head) * shape.head_dim);
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
