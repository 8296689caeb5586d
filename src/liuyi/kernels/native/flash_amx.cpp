// flash.h with AMX: tiles 0–3 hold sums, 4 and 5 the left operand, 6 and 7 the right one.
//
// A right operand's tile holds 32 rows of a matrix as 16 rows of pairs: [row / 2][column][row % 2]. `pair_rows` lays a
// block out so, and `transpose_pairs` its transpose. Blocks are of 32: what lies beyond the end of a row is zero there.

#include "flash.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "simd.h"

namespace liuyi {

using namespace amx;

namespace {

constexpr int kBlock = 32;
constexpr int kTile = 512;  // bfloat16 numbers in a tile

struct alignas(64) TileShape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The matrix unit, for as long as this lives.
class Tiles {
  public:
    Tiles() {
        const TileShape shape;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
};

int blocks_of(int count) { return (count + kBlock - 1) / kBlock; }

LIUYI_INLINE void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Sums of 32 × 32, `stride` floats from row to row.
LIUYI_INLINE void load_sums(const float* from, int stride) {
    _tile_loadd(0, from, stride * 4);
    _tile_loadd(1, from + 16, stride * 4);
    _tile_loadd(2, from + 16 * stride, stride * 4);
    _tile_loadd(3, from + 16 * stride + 16, stride * 4);
}
LIUYI_INLINE void store_sums(float* to, int stride) {
    _tile_stored(0, to, stride * 4);
    _tile_stored(1, to + 16, stride * 4);
    _tile_stored(2, to + 16 * stride, stride * 4);
    _tile_stored(3, to + 16 * stride + 16, stride * 4);
}

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
    for (int row = 0; row < kBlock; ++row) {
        if (row < rows) std::memcpy(to + row * size, from + row * stride, size * 2);
        else std::memset(to + row * size, 0, size * 2);
    }
}

// A block of 32 rows → size / 16 tiles, one for each 16 columns, with rows as what is summed over.
void pair_rows(const uint16_t* block, int size, uint16_t* tiles) {
    for (int pair = 0; pair < 16; ++pair) {
        for (int column = 0; column < size; column += 16) {
            const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 2 * pair * size + column));
            const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + (2 * pair + 1) * size + column));
            const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                                 _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
            _mm512_storeu_si512(tiles + column / 16 * kTile + pair * 32, both);
        }
    }
}

// A block of 32 rows → for each 32 columns two tiles, rows 0–15 and 16–31, with columns as what is summed over.
void transpose_pairs(const uint16_t* block, int size, uint16_t* tiles) {
    const __m512i at = _mm512_mullo_epi32(_mm512_set1_epi32(size / 2), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int column = 0; column < size; column += 32) {
        for (int half = 0; half < 2; ++half) {
            const uint16_t* from = block + half * 16 * size + column;
            uint16_t* tile = tiles + (column / 32 * 2 + half) * kTile;
            for (int pair = 0; pair < 16; ++pair) {
                _mm512_storeu_si512(tile + pair * 32, _mm512_i32gather_epi32(at, from + 2 * pair, 4));
            }
        }
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
    const auto seen = [&](int key) {
        const Ints at = _mm512_add_epi32(_mm512_set1_epi32(key), lanes());
        return _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(first)) & _mm512_cmple_epi32_mask(at, _mm512_set1_epi32(last));
    };
    for (int key = begin; key < end; key += 16) {
        most = _mm512_mask_max_ps(most, seen(key), most, load(scores + key - begin));
    }
    *highest = largest(most) * scale;
    Floats total = zero();
    for (int key = begin; key < end; key += 16) {
        const Floats shifted = sub(mul(load(scores + key - begin), all(scale)), all(*highest));
        const Floats weight = _mm512_maskz_mov_ps(seen(key), exp(shifted));
        total = add(total, weight);
        store_bf16(weights + key - begin, weight);
    }
    return sum(total);
}

}  // namespace

void flash_forward(const Team& team, const FlashShape& s, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                   const int64_t* starts, uint16_t* out, float* lse) {
    const int blocks = blocks_of(s.seq), size = s.head_dim, block_size = kBlock * size;
    const int64_t q_stride = static_cast<int64_t>(s.heads) * size, kv_stride = static_cast<int64_t>(s.kv_heads) * size;
    const int64_t of_head = static_cast<int64_t>(blocks) * block_size;
    std::vector<uint16_t> packed(2 * of_head * s.batch * s.kv_heads);
    uint16_t *keys = packed.data(), *values = keys + of_head * s.batch * s.kv_heads;
    for_each_part(team, s.batch * s.kv_heads, [&](int part) {
        std::vector<uint16_t> block(block_size);
        const int64_t at = (static_cast<int64_t>(part / s.kv_heads) * s.seq * s.kv_heads + part % s.kv_heads) * size;
        for (int b = 0; b < blocks; ++b) {
            const int64_t row = at + b * kBlock * kv_stride;
            copy_block(k + row, kv_stride, s.seq - b * kBlock, size, block.data());
            transpose_pairs(block.data(), size, keys + part * of_head + b * block_size);
            copy_block(v + row, kv_stride, s.seq - b * kBlock, size, block.data());
            pair_rows(block.data(), size, values + part * of_head + b * block_size);
        }
    });
    for_each_part(team, s.batch * s.heads * blocks, [&](int part) {
        const int b = blocks - 1 - part / (s.batch * s.heads);  // the longest first
        const int row = part % (s.batch * s.heads) / s.heads, head = part % s.heads;
        const int64_t kv = static_cast<int64_t>(row * s.kv_heads + head / (s.heads / s.kv_heads)) * of_head;
        const Sight sight{starts != nullptr ? starts + static_cast<int64_t>(row) * s.seq : nullptr, s.window};
        const int query = b * kBlock, queries = s.seq - query < kBlock ? s.seq - query : kBlock;
        const int low = sight.first(query) / kBlock, keys_here = (b + 1 - low) * kBlock;
        std::vector<uint16_t> block(block_size), weights(kBlock * keys_here);
        std::vector<float> scores(kBlock * keys_here), mixed(block_size);
        float sums[kBlock];
        const int64_t first_q = (static_cast<int64_t>(row) * s.seq + query) * q_stride + head * size;
        copy_block(q + first_q, q_stride, queries, size, block.data());
        const Tiles tiles;
        for (int kb = low; kb <= b; ++kb) {
            clear_sums();
            const uint16_t* right = keys + kv + kb * block_size;
            for (int c = 0; c < size; c += 32) multiply(block.data() + c, size, right + c / 16 * kTile, right + (c / 16 + 1) * kTile);
            store_sums(scores.data() + (kb - low) * kBlock, keys_here);
        }
        for (int i = 0; i < queries; ++i) {
            float highest;
            sums[i] = soften(scores.data() + i * keys_here, low * kBlock, (b + 1) * kBlock, sight.first(query + i), query + i,
                             s.scale, weights.data() + i * keys_here, &highest);
            lse[(static_cast<int64_t>(row) * s.heads + head) * s.seq + query + i] = highest + std::log(sums[i]);
        }
        for (int c = 0; c < size; c += 32) {
            clear_sums();
            for (int kb = low; kb <= b; ++kb) {
                const uint16_t* right = values + kv + kb * block_size + c / 16 * kTile;
                multiply(weights.data() + (kb - low) * kBlock, keys_here, right, right + kTile);
            }
            store_sums(mixed.data() + c, size);
        }
        for (int i = 0; i < queries; ++i) {
            for (int c = 0; c < size; c += kWidth) {
                store_bf16(out + first_q + i * q_stride + c, mul(load(mixed.data() + i * size + c), all(1.0f / sums[i])));
            }
        }
    });
}

void flash_backward(const Team& team, const FlashShape& s, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                    const int64_t* starts, const uint16_t* out, const float* lse, const uint16_t* grad, uint16_t* grad_q,
                    uint16_t* grad_k, uint16_t* grad_v) {
    const int blocks = blocks_of(s.seq), size = s.head_dim, block_size = kBlock * size, padded = blocks * kBlock;
    const int64_t q_stride = static_cast<int64_t>(s.heads) * size, kv_stride = static_cast<int64_t>(s.kv_heads) * size;
    const int64_t of_head = static_cast<int64_t>(padded) * size;
    // The gradients of keys and values that each query head gives, summed over the heads of a group below.
    std::vector<float> for_keys(of_head * s.batch * s.heads), for_values(of_head * s.batch * s.heads);
    for_each_part(team, s.batch * s.heads, [&](int part) {
        const int row = part / s.heads, head = part % s.heads, kv_head = head / (s.heads / s.kv_heads);
        const Sight sight{starts != nullptr ? starts + static_cast<int64_t>(row) * s.seq : nullptr, s.window};
        const int64_t q_at = static_cast<int64_t>(row) * s.seq * q_stride + head * size;
        const int64_t kv_at = static_cast<int64_t>(row) * s.seq * kv_stride + kv_head * size;
        const float* row_lse = lse + static_cast<int64_t>(part) * s.seq;
        // Of all queries: as right operands with columns summed over (for scores) and with rows (for gradients).
        std::vector<uint16_t> q_columns(of_head), q_rows(of_head), grad_columns(of_head), grad_rows(of_head);
        std::vector<uint16_t> block(block_size), values(block_size), keys_across(block_size);
        std::vector<float> logs(padded), along(padded), for_queries(of_head);  // [head_dim, padded]
        std::vector<int> firsts(padded);
        for (int b = 0; b < blocks; ++b) {
            const int64_t at = q_at + b * kBlock * q_stride;
            copy_block(q + at, q_stride, s.seq - b * kBlock, size, block.data());
            transpose_pairs(block.data(), size, q_columns.data() + b * block_size);
            pair_rows(block.data(), size, q_rows.data() + b * block_size);
            copy_block(grad + at, q_stride, s.seq - b * kBlock, size, block.data());
            transpose_pairs(block.data(), size, grad_columns.data() + b * block_size);
            pair_rows(block.data(), size, grad_rows.data() + b * block_size);
        }
        for (int i = 0; i < padded; ++i) {
            firsts[i] = i < s.seq ? sight.first(i) : padded;  // what is beyond the end sees nothing
            if (i >= s.seq) continue;
            logs[i] = row_lse[i];
            Floats total = zero();
            for (int c = 0; c < size; c += kWidth) {
                total = fma(load_bf16(out + q_at + i * q_stride + c), load_bf16(grad + q_at + i * q_stride + c), total);
            }
            along[i] = sum(total);
        }
        const Tiles tiles;
        alignas(64) float scores[kBlock * kBlock], towards[kBlock * kBlock];
        alignas(64) uint16_t weights[kBlock * kBlock], slopes[kBlock * kBlock], slope_pairs[2 * kTile];
        float* to_keys = for_keys.data() + part * of_head;
        float* to_values = for_values.data() + part * of_head;
        for (int kb = 0; kb < blocks; ++kb) {
            const int64_t at = kv_at + kb * kBlock * kv_stride;
            copy_block(k + at, kv_stride, s.seq - kb * kBlock, size, block.data());
            copy_block(v + at, kv_stride, s.seq - kb * kBlock, size, values.data());
            for (int c = 0; c < size; ++c) {
                for (int i = 0; i < kBlock; ++i) keys_across[c * kBlock + i] = block[i * size + c];
            }
            float *keys_here = to_keys + kb * block_size, *values_here = to_values + kb * block_size;
            for (int qb = kb; qb < blocks && firsts[qb * kBlock] < (kb + 1) * kBlock; ++qb) {
                // Scores and the gradient of the weights, transposed: [keys, queries].
                clear_sums();
                for (int c = 0; c < size; c += 32) {
                    const uint16_t* right = q_columns.data() + qb * block_size + c / 16 * kTile;
                    multiply(block.data() + c, size, right, right + kTile);
                }
                store_sums(scores, kBlock);
                clear_sums();
                for (int c = 0; c < size; c += 32) {
                    const uint16_t* right = grad_columns.data() + qb * block_size + c / 16 * kTile;
                    multiply(values.data() + c, size, right, right + kTile);
                }
                store_sums(towards, kBlock);
                for (int half = 0; half < kBlock; half += 16) {
                    const int query = qb * kBlock + half;
                    const Floats log_sums = load(logs.data() + query), mean = load(along.data() + query);
                    const Ints first = load_ints(firsts.data() + query);
                    const Ints last = _mm512_add_epi32(_mm512_set1_epi32(query), lanes());
                    for (int i = 0; i < kBlock; ++i) {
                        const Ints key = _mm512_set1_epi32(kb * kBlock + i);
                        const __mmask16 seen = _mm512_cmpge_epi32_mask(key, first) & _mm512_cmple_epi32_mask(key, last);
                        const Floats shifted = sub(mul(load(scores + i * kBlock + half), all(s.scale)), log_sums);
                        const Floats weight = _mm512_maskz_mov_ps(seen, exp(shifted));
                        const Floats slope = _mm512_maskz_mul_ps(seen, weight, sub(load(towards + i * kBlock + half), mean));
                        store_bf16(weights + i * kBlock + half, weight);
                        store_bf16(slopes + i * kBlock + half, slope);
                    }
                }
                pair_rows(slopes, kBlock, slope_pairs);
                for (int c = 0; c < size; c += 32) {
                    const uint16_t* right = grad_rows.data() + qb * block_size + c / 16 * kTile;
                    load_sums(values_here + c, size);
                    multiply(weights, kBlock, right, right + kTile);
                    store_sums(values_here + c, size);
                    right = q_rows.data() + qb * block_size + c / 16 * kTile;
                    load_sums(keys_here + c, size);
                    multiply(slopes, kBlock, right, right + kTile);
                    store_sums(keys_here + c, size);
                    float* queries_here = for_queries.data() + static_cast<int64_t>(c) * padded + qb * kBlock;
                    load_sums(queries_here, padded);
                    multiply(keys_across.data() + c * kBlock, kBlock, slope_pairs, slope_pairs + kTile);
                    store_sums(queries_here, padded);
                }
            }
        }
        const Ints down = _mm512_mullo_epi32(lanes(), _mm512_set1_epi32(padded));
        for (int i = 0; i < s.seq; ++i) {
            for (int c = 0; c < size; c += kWidth) {
                const Floats turned = _mm512_i32gather_ps(down, for_queries.data() + static_cast<int64_t>(c) * padded + i, 4);
                store_bf16(grad_q + q_at + i * q_stride + c, mul(turned, all(s.scale)));
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
                    keys = add(keys, load(for_keys.data() + at));
                    values = add(values, load(for_values.data() + at));
                }
                store_bf16(grad_k + kv_at + i * kv_stride + c, mul(keys, all(s.scale)));
                store_bf16(grad_v + kv_at + i * kv_stride + c, values);
            }
        }
    });
}

}  // namespace liuyi
