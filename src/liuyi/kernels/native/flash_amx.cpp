// flash.h with AMX: tiles 0–3 hold sums, 4 and 5 the left operand, 6 and 7 the right one.
//
// A right operand's tile holds 32 rows of a matrix as 16 rows of pairs: [row / 2][column][row % 2]. `pair_rows` lays a
// block out so, and `transpose_pairs` its transpose. Blocks are of 32: what lies beyond the end of a row is zero there.

#include "flash.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "buffer.h"
#include "simd.h"
#include "tiles.h"

namespace liuyi {

using namespace LIUYI_ISA;

namespace {

constexpr int kGroup = 4;  // blocks of keys that a block of queries meets one after the other

int blocks_of(int count) { return (count + kBlock - 1) / kBlock; }

// sums += left (32 rows of 32 numbers, `stride` apart) · right (two tiles of pairs)
LIUYI_INLINE void multiply(const uint16_t* left, int stride, const uint16_t* right_0, const uint16_t* right_1) {
    _tile_loadd(4, left, stride * 2);
    _tile_loadd(5, left + 16 * stride, stride * 2);
    _tile_loadd(6, right_0, 64);
    _tile_loadd(7, right_1, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// Rows `stride` apart to a block of 32 rows side by side, zero from `rows` on.
void copy_block(const uint16_t* from, int64_t stride, int rows, int size, uint16_t* to) {
    for (int row = 0; row < kBlock; ++row, from += stride) {
        for (int c = 0; c < size; c += kBlock) {
            _mm512_store_si512(to + row * size + c, row < rows ? _mm512_loadu_si512(from + c) : _mm512_setzero_si512());
        }
    }
}

// A block of 32 rows → size / 16 tiles, one for each 16 columns, with rows as what is summed over.
void pair_rows(const uint16_t* block, int size, uint16_t* tiles) {
    for (int column = 0; column < size; column += kBlock) pack_pairs<false>(block + column, size, tiles + column * kBlock);
}

// A block of 32 rows → for each 32 columns two tiles, rows 0–15 and 16–31, with columns as what is summed over.
void transpose_pairs(const uint16_t* block, int size, uint16_t* tiles) {
    for (int column = 0; column < size; column += kBlock) pack_rows<true>(block + column, size, tiles + column * kBlock);
}

// A block of 32 rows → its columns as rows of 32 numbers.
void turn_rows(const uint16_t* block, int size, uint16_t* columns) {
    for (int column = 0; column < size; column += kBlock) pack_pairs<true>(block + column, size, columns + column * kBlock);
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Room = std::unique_ptr<T[], Free>;

// Memory that holds anything, on the boundary of a line of the cache, as rows of tiles should be.
template <class T>
Room<T> room(int64_t count) {
    void* memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
    if (memory == nullptr) throw std::bad_alloc();
    return Room<T>(static_cast<T*>(memory));
}

// left (32 rows of `size` numbers) · right (as many rows, 32 columns) to 32 × 32 sums
LIUYI_INLINE void multiply_all(const uint16_t* left, const uint16_t* right, int size, float* to) {
    clear_sums();
    for (int c = 0; c < size; c += kBlock) multiply(left + c, size, right + c * kBlock, right + c * kBlock + kTile);
    store_sums(to, kBlock);
}

// Of a strip of blocks [keys, queries], from one block of queries to another: strip · right, [keys, size].
LIUYI_INLINE void sum_over_queries(const uint16_t* strip, const uint16_t* right, int first, int end, int size, float* to) {
    for (int c = 0; c < size; c += kBlock) {
        clear_sums();
        for (int qb = first; qb < end; ++qb) {
            const uint16_t* columns = right + qb * kBlock * size + c * kBlock;
            multiply(strip + qb * kBlock * kBlock, kBlock, columns, columns + kTile);
        }
        store_sums(to + c, size);
    }
}

// Where a query begins to see.
struct Sight {
    const int64_t* starts;
    int window;
    int first(int query) const {
        const int start = starts != nullptr ? static_cast<int>(starts[query]) : 0;
        const int reach = window > 0 && query >= window ? query - window + 1 : 0;
        return start > reach ? start : reach;
    }
};

LIUYI_INLINE Ints lanes() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// softmax of one row of scores, not yet divided by its sum; returns that, and the highest scaled score.
LIUYI_INLINE float soften(const float* scores, int begin, int end, int first, int last, float scale, uint16_t* weights,
                          float* highest) {
    Floats most = all(-INFINITY);
    const auto seen = [&](int key) -> __mmask16 {
        if (key >= first && key + 15 <= last) return 0xffff;
        const Ints at = _mm512_add_epi32(_mm512_set1_epi32(key), lanes());
        return _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(first)) & _mm512_cmple_epi32_mask(at, _mm512_set1_epi32(last));
    };
    for (int key = begin; key < end; key += 16) {
        most = _mm512_mask_max_ps(most, seen(key), most, load(scores + key - begin));
    }
    *highest = largest(most) * scale;
    Floats total = zero();
    for (int key = begin; key < end; key += 16) {
        const Floats shifted = fma(load(scores + key - begin), all(scale * kLog2E), all(-*highest * kLog2E));
        const Floats weight = _mm512_maskz_mov_ps(seen(key), exp2(shifted));
        total = add(total, weight);
        store_bf16(weights + key - begin, weight);
    }
    return sum(total);
}

}  // namespace

void flash_forward(const Team& team, const FlashShape& s, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                   const int64_t* starts, uint16_t* out, float* lse) {
    const int blocks = blocks_of(s.seq), size = s.head_dim, block_size = kBlock * size;
    const int64_t q_stride = s.q_stride, kv_stride = s.kv_stride, out_stride = static_cast<int64_t>(s.heads) * size;
    const int64_t of_head = static_cast<int64_t>(blocks) * block_size;
    const Room<uint16_t> packed = room<uint16_t>(2 * of_head * s.batch * s.kv_heads);
    uint16_t *keys = packed.get(), *values = keys + of_head * s.batch * s.kv_heads;
    for_each_part(team, s.batch * s.kv_heads, [&](int part) {
        const Room<uint16_t> block = room<uint16_t>(block_size);
        const int64_t at = static_cast<int64_t>(part / s.kv_heads) * s.seq * kv_stride + part % s.kv_heads * size;
        for (int b = 0; b < blocks; ++b) {
            const int64_t row = at + b * kBlock * kv_stride;
            copy_block(k + row, kv_stride, s.seq - b * kBlock, size, block.get());
            transpose_pairs(block.get(), size, keys + part * of_head + b * block_size);
            copy_block(v + row, kv_stride, s.seq - b * kBlock, size, block.get());
            pair_rows(block.get(), size, values + part * of_head + b * block_size);
        }
    });
    for_each_part(team, s.batch * s.heads * blocks, [&](int part) {
        const int b = blocks - 1 - part / (s.batch * s.heads);  // the longest first
        const int row = part % (s.batch * s.heads) / s.heads, head = part % s.heads;
        const int64_t kv = static_cast<int64_t>(row * s.kv_heads + head / (s.heads / s.kv_heads)) * of_head;
        const Sight sight{starts != nullptr ? starts + static_cast<int64_t>(row) * s.seq : nullptr, s.window};
        const int query = b * kBlock, queries = s.seq - query < kBlock ? s.seq - query : kBlock;
        const int low = sight.first(query) / kBlock, keys_here = (b + 1 - low) * kBlock;
        thread_local Buffer memory;  // There are many parts.
        memory.grow((block_size + kBlock * keys_here) * (sizeof(float) + sizeof(uint16_t)));
        float *scores = memory.as<float>(), *mixed = scores + kBlock * keys_here;
        uint16_t *block = reinterpret_cast<uint16_t*>(mixed + block_size), *weights = block + block_size;
        float sums[kBlock];
        const int64_t token = static_cast<int64_t>(row) * s.seq + query;
        copy_block(q + token * q_stride + head * size, q_stride, queries, size, block);
        const Tiles tiles;
        for (int kb = low; kb <= b; ++kb) {
            clear_sums();
            const uint16_t* right = keys + kv + kb * block_size;
            for (int c = 0; c < size; c += 32) multiply(block + c, size, right + c / 16 * kTile, right + (c / 16 + 1) * kTile);
            store_sums(scores + (kb - low) * kBlock, keys_here);
        }
        for (int i = 0; i < queries; ++i) {
            float highest;
            sums[i] = soften(scores + i * keys_here, low * kBlock, (b + 1) * kBlock, sight.first(query + i), query + i,
                             s.scale, weights + i * keys_here, &highest);
            lse[(static_cast<int64_t>(row) * s.heads + head) * s.seq + query + i] = highest + std::log(sums[i]);
        }
        for (int c = 0; c < size; c += 32) {
            clear_sums();
            for (int kb = low; kb <= b; ++kb) {
                const uint16_t* right = values + kv + kb * block_size + c / 16 * kTile;
                multiply(weights + (kb - low) * kBlock, keys_here, right, right + kTile);
            }
            store_sums(mixed + c, size);
        }
        for (int i = 0; i < queries; ++i) {
            uint16_t* to = out + (token + i) * out_stride + head * size;
            for (int c = 0; c < size; c += kWidth) store_bf16(to + c, mul(load(mixed + i * size + c), all(1.0f / sums[i])));
        }
    });
}

void flash_backward(const Team& team, const FlashShape& s, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                    const int64_t* starts, const uint16_t* out, const float* lse, const uint16_t* grad, uint16_t* grad_q,
                    uint16_t* grad_k, uint16_t* grad_v) {
    const int blocks = blocks_of(s.seq), size = s.head_dim, block_size = kBlock * size, padded = blocks * kBlock;
    const int64_t q_stride = s.q_stride, kv_stride = s.kv_stride, out_stride = static_cast<int64_t>(s.heads) * size;
    const int64_t of_head = static_cast<int64_t>(padded) * size;
    // The gradients of keys and values that each query head gives, summed over the heads of a group below.
    const Room<float> for_keys = room<float>(of_head * s.batch * s.heads), for_values = room<float>(of_head * s.batch * s.heads);
    for_each_part(team, s.batch * s.heads, [&](int part) {
        const int row = part / s.heads, head = part % s.heads, kv_head = head / (s.heads / s.kv_heads);
        const Sight sight{starts != nullptr ? starts + static_cast<int64_t>(row) * s.seq : nullptr, s.window};
        const int64_t q_at = static_cast<int64_t>(row) * s.seq * q_stride + head * size;
        const int64_t out_at = static_cast<int64_t>(row) * s.seq * out_stride + head * size;
        const int64_t kv_at = static_cast<int64_t>(row) * s.seq * kv_stride + kv_head * size;
        const float* row_lse = lse + static_cast<int64_t>(part) * s.seq;
        // Of all queries: as right operands with columns summed over (for scores) and with rows (for gradients).
        const Room<uint16_t> of_queries = room<uint16_t>(4 * of_head);
        uint16_t *q_columns = of_queries.get(), *q_rows = q_columns + of_head;
        uint16_t *grad_columns = q_rows + of_head, *grad_rows = grad_columns + of_head;
        const Room<uint16_t> of_keys = room<uint16_t>(3 * kGroup * block_size);
        uint16_t *keys = of_keys.get(), *keys_across = keys + kGroup * block_size, *values = keys_across + kGroup * block_size;
        // Of a group of keys and all queries, in blocks [keys, queries]: softmax, and the gradient of scores.
        const Room<uint16_t> strips = room<uint16_t>(2 * static_cast<int64_t>(kGroup) * kBlock * padded);
        uint16_t *weights = strips.get(), *slopes = weights + static_cast<int64_t>(kGroup) * kBlock * padded;
        const Room<float> logs = room<float>(padded), along = room<float>(padded);
        const Room<float> for_queries = room<float>(of_head);  // [head_dim, padded]
        std::memset(for_queries.get(), 0, of_head * sizeof(float));
        const Room<int> firsts = room<int>(padded);
        for (int b = 0; b < blocks; ++b) {
            copy_block(q + q_at + b * kBlock * q_stride, q_stride, s.seq - b * kBlock, size, keys);
            transpose_pairs(keys, size, q_columns + b * block_size);
            pair_rows(keys, size, q_rows + b * block_size);
            copy_block(grad + out_at + b * kBlock * out_stride, out_stride, s.seq - b * kBlock, size, keys);
            transpose_pairs(keys, size, grad_columns + b * block_size);
            pair_rows(keys, size, grad_rows + b * block_size);
        }
        for (int i = 0; i < padded; ++i) {
            firsts[i] = i < s.seq ? sight.first(i) : padded;  // what is beyond the end sees nothing
            logs[i] = along[i] = 0.0f;
            if (i >= s.seq) continue;
            logs[i] = row_lse[i];
            Floats total = zero();
            const int64_t at = out_at + i * out_stride;
            for (int c = 0; c < size; c += kWidth) total = fma(load_bf16(out + at + c), load_bf16(grad + at + c), total);
            along[i] = sum(total);
        }
        const Tiles tiles;
        alignas(64) float scores[kBlock * kBlock], towards[kBlock * kBlock];
        alignas(64) uint16_t slope_pairs[kGroup][2 * kTile];
        for (int group = 0; group < blocks; group += kGroup) {
            const int here = blocks - group < kGroup ? blocks - group : kGroup;
            int ends[kGroup];  // the first block of queries that sees no more of a block of keys
            for (int j = 0; j < here; ++j) {
                const int64_t at = kv_at + (group + j) * kBlock * kv_stride;
                copy_block(k + at, kv_stride, s.seq - (group + j) * kBlock, size, keys + j * block_size);
                copy_block(v + at, kv_stride, s.seq - (group + j) * kBlock, size, values + j * block_size);
                turn_rows(keys + j * block_size, size, keys_across + j * block_size);
                ends[j] = group + j;
                while (ends[j] < blocks && firsts[ends[j] * kBlock] < (group + j + 1) * kBlock) ++ends[j];
            }
            for (int qb = group; qb < ends[here - 1]; ++qb) {
                int low = 0;  // queries see later blocks of keys for longer
                while (ends[low] <= qb) ++low;
                const int high = qb - group + 1 < here ? qb - group + 1 : here;
                for (int j = low; j < high; ++j) {
                    // Scores and the gradient of the weights, transposed: [keys, queries].
                    multiply_all(keys + j * block_size, q_columns + qb * block_size, size, scores);
                    multiply_all(values + j * block_size, grad_columns + qb * block_size, size, towards);
                    uint16_t* weights_here = weights + (static_cast<int64_t>(j) * blocks + qb) * kBlock * kBlock;
                    uint16_t* slopes_here = slopes + (static_cast<int64_t>(j) * blocks + qb) * kBlock * kBlock;
                    // Whether all of these queries see all of these keys.
                    const bool whole = qb > group + j && firsts[qb * kBlock + kBlock - 1] <= (group + j) * kBlock;
                    for (int half = 0; half < kBlock; half += 16) {
                        const int query = qb * kBlock + half;
                        const Floats log_sums = mul(load(logs.get() + query), all(-kLog2E)), mean = load(along.get() + query);
                        const Ints first = load_ints(firsts.get() + query);
                        const Ints last = _mm512_add_epi32(_mm512_set1_epi32(query), lanes());
                        for (int i = 0; i < kBlock; ++i) {
                            const Ints key = _mm512_set1_epi32((group + j) * kBlock + i);
                            __mmask16 seen = 0xffff;
                            if (!whole) seen = _mm512_cmpge_epi32_mask(key, first) & _mm512_cmple_epi32_mask(key, last);
                            const Floats shifted = fma(load(scores + i * kBlock + half), all(s.scale * kLog2E), log_sums);
                            const Floats weight = _mm512_maskz_mov_ps(seen, exp2(shifted));
                            const Floats slope =
                                _mm512_maskz_mul_ps(seen, weight, sub(load(towards + i * kBlock + half), mean));
                            store_bf16(weights_here + i * kBlock + half, weight);
                            store_bf16(slopes_here + i * kBlock + half, slope);
                        }
                    }
                    pair_rows(slopes_here, kBlock, slope_pairs[j]);
                }
                for (int c = 0; c < size; c += kBlock) {
                    float* queries_here = for_queries.get() + static_cast<int64_t>(c) * padded + qb * kBlock;
                    load_sums(queries_here, padded);
                    for (int j = low; j < high; ++j) {
                        multiply(keys_across + j * block_size + c * kBlock, kBlock, slope_pairs[j], slope_pairs[j] + kTile);
                    }
                    store_sums(queries_here, padded);
                }
            }
            for (int j = 0; j < here; ++j) {
                const int64_t at = part * of_head + static_cast<int64_t>(group + j) * block_size;
                const int64_t strip = static_cast<int64_t>(j) * blocks * kBlock * kBlock;
                sum_over_queries(weights + strip, grad_rows, group + j, ends[j], size, for_values.get() + at);
                sum_over_queries(slopes + strip, q_rows, group + j, ends[j], size, for_keys.get() + at);
            }
        }
        for (int i = 0; i < s.seq; i += 16) {
            for (int c = 0; c < size; c += 16) {
                __m512i lines[16];
                for (int j = 0; j < 16; ++j) {
                    lines[j] = _mm512_load_si512(for_queries.get() + static_cast<int64_t>(c + j) * padded + i);
                }
                transpose(lines);
                for (int j = 0; j < 16 && i + j < s.seq; ++j) {
                    store_bf16(grad_q + q_at + (i + j) * q_stride + c, mul(_mm512_castsi512_ps(lines[j]), all(s.scale)));
                }
            }
        }
    });
    const int group = s.heads / s.kv_heads;
    for_each_part(team, s.batch * s.kv_heads, [&](int part) {
        const int row = part / s.kv_heads;
        const int64_t kv_at = static_cast<int64_t>(row) * s.seq * kv_stride + part % s.kv_heads * size;
        const int64_t heads_at = static_cast<int64_t>(part) * group * of_head;
        for (int64_t i = 0; i < s.seq; ++i) {
            for (int c = 0; c < size; c += kWidth) {
                Floats keys = zero(), values = zero();
                for (int head = 0; head < group; ++head) {
                    const int64_t at = heads_at + head * of_head + i * size + c;
                    keys = add(keys, load(for_keys.get() + at));
                    values = add(values, load(for_values.get() + at));
                }
                store_bf16(grad_k + kv_at + i * kv_stride + c, mul(keys, all(s.scale)));
                store_bf16(grad_v + kv_at + i * kv_stride + c, values);
            }
        }
    });
}

}  // namespace liuyi
