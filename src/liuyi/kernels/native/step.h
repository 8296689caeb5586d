// What one call of the forward pass works on: the model's parts, the batch, and scratch memory, as plain pointers.
//
// The code that is compiled for each instruction set sees only this: what allocates or may throw stays outside.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear.h"
#include "threads.h"

namespace liuyi {

// Tokens in a block of the cache.
constexpr int kBlockTokens = 32;
// Keys whose softmax is taken at once; spans begin at multiples of it. Results of the spans of a stretch are joined in
// order, and then those of the stretches, so that attention adds up in the same order for a prompt, a piece of a prompt,
// and a single new token, whoever computes which part.
constexpr int kSpanTokens = 256;
constexpr int kSpanBlocks = kSpanTokens / kBlockTokens;
constexpr int kStretchSpans = 4;

enum class KvFormat : int { f32 = 0, bf16 = 1, int8 = 2 };

// Layout of keys and values. The cache is [block][layer][kv head], and each head of a block is
//   f32    keys [dim][32], then values [32][dim]
//   bf16   keys [dim/2][32][2], then values [16][dim][2]
//   int8   keys [dim/4][32][4] as unsigned bytes + 128, then values [8][dim][4] as signed bytes, then the float32
//          scales of the 32 keys and of the 32 values
// with head_dim padded by zeros to `dim`, a multiple of 16.
struct KvLayout {
    KvFormat format;
    int dim;
    size_t head_bytes, layer_bytes, block_bytes;
    size_t query_bytes;  // of one query head, as the kernels take it
};

struct Layer {
    Linear qkv{}, output{}, gate_up{}, down{};
    Buffer attention_norm, mlp_norm;  // float32 [hidden]
    Buffer q_norm, k_norm;            // float32 [head_dim]; empty without them
    int window = 0;                   // keys that a query sees, itself included; 0 for all
};

struct Shape {
    int vocab, hidden, intermediate, layers, heads, kv_heads, head_dim;
    float norm_eps;
};

// What an adapter adds to a projection: up·(down·x); rank 0 adds nothing.
struct LowRank {
    int rank = 0;
    const float* down = nullptr;  // [rank, columns]
    const float* up = nullptr;    // [rank, rows], scaled
};

enum Projection : int { q_proj = 0, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, kProjections };

struct LowRanks {
    LowRank of[kProjections];
};

// New tokens of one sequence that lie in one block of the cache.
struct Piece {
    int token, count, sequence, position;
};

// Tokens that go from one layer's attention to the next one's together, and the pieces that they are.
struct Block {
    int token, count, first_piece, end_piece;
};

// Some tokens of a sequence, and which spans of keys they see.
struct Tile {
    int sequence, token, count;
    int first_span, end_span;
    int unit_spans;  // of one unit: a stretch, one span, or 0 if one thread does all of them
    int partials;    // where the results of the units begin, in rows

    int part_of(int span) const { return span / unit_spans - first_span / unit_spans; }
    int parts() const { return part_of(end_span - 1) + 1; }
};

// A piece of attention work: a tile and one of its heads, for all spans, a stretch, or one.
struct Unit {
    int tile, kv_head, first_span, end_span;
};

// The attention work of a batch for one width of window.
struct Plan {
    int window;
    const Tile* tiles;
    const Unit* units;
    int unit_count;
    const int* tile_of_token;
};

// What a step gives: float32 logits [rows, vocab], float32 hidden states [rows, hidden], or int32 tokens [rows], of each
// row the first with the largest logit, or one that is drawn.
enum class Output : int { logits = 0, hidden = 1, chosen = 2 };

// Logits that are computed before the next ones take their place, where only a token is wanted.
constexpr int kChoiceColumns = 256;

struct Choice {
    double score = -__builtin_inf();
    int32_t token = 0;
};

struct Step {
    Shape shape;
    KvLayout kv;
    const Layer* layers;
    const Linear* head;
    const float* final_norm;
    Format embedding_format;
    const void* embedding;  // [vocab, hidden]
    uint8_t* cache;
    Threads* threads;

    int tokens, sequences, most_blocks, pieces, rows;
    // What goes through all layers; the tokens after these, of the last sequence, go from first_layer to end_layer. Their
    // residual stream [tokens - whole_tokens, hidden] waits in between.
    int whole_tokens, whole_pieces;
    int first_layer, end_layer;
    float* residual;
    const int32_t *ids, *tables, *wanted;  // wanted [rows]: the tokens whose results are asked for
    const int* positions;                  // [tokens]
    const float *cosines, *sines;  // [positions, head_dim / 2], or [tokens, head_dim / 2]
    bool angles_by_token;
    const Piece* piece_list;
    int blocks, block_rows;  // how many blocks and the most tokens of one; 0 where all tokens go together
    const Block* block_list;
    const Plan *plans, *whole_plans;  // one for each window there is: of all tokens, and of those that go through all layers
    const int* layer_plan;            // [layers]
    Tickets *tickets, *block_tickets;  // [layers], reset

    // Of each token [tokens], or null: its adapter's additions, [layers].
    const LowRanks* const* adapters;
    bool adapted;       // whether any token has one
    float* normed;      // [tokens, hidden]: what the norms gave, kept where there are adapters
    float* gate_up;     // [tokens, 2 · intermediate], only where there are adapters

    float *x, *qkv, *attended, *middle, *partials;
    float* last_x;  // [rows, hidden]: x in the last layer, where fewer rows than tokens are wanted; else null
    uint8_t *prepared, *queries, *work;
    size_t work_bytes;      // of each thread
    size_t prepared_bytes;  // the most that a row of a layer's products needs

    Output output;
    void* result;
    // Of each row [rows]: the temperature at which its token is drawn, 0 for the likeliest, and the key of the noise; or null.
    const float* temperatures;
    const uint64_t* keys;
    Choice* choices;        // [threads, rows]
    float* choice_columns;  // [threads, rows, kChoiceColumns]
};

// Tokens of a tile, so that the rows of a group of heads fit the kernels.
inline int tile_tokens(const Shape& shape) {
    const int tokens = 96 / (shape.heads / shape.kv_heads);
    return tokens < 1 ? 1 : tokens > kBlockTokens ? kBlockTokens : tokens;
}

// Floats of one partial result of attention: values mixed over a span, the largest score, the sum of the weights.
inline size_t partial_floats(int dim) { return static_cast<size_t>(dim) + 16; }

constexpr int kMostHeadDim = 256;

// Bytes that a thread needs: for the rows of a kernel their scores, mixed values, packed weights and scales, the sums of
// four tiles, and the values of a span; for the rows of a tile of tokens the joined values, highest scores and totals, of a
// stretch and of all.
// Or one row of the residual stream, or all queries and keys of a token.
constexpr int kMostKernelRows = 32;
constexpr int kTileSums = 4 * 16 * 16;
inline size_t work_bytes(const Shape& shape, int dim) {
    const size_t rows = tile_tokens(shape) * (shape.heads / shape.kv_heads) + kMostKernelRows;
    const size_t kernel = kMostKernelRows * ((kSpanTokens + dim + 1) * sizeof(float) + 2 * kSpanTokens);
    const size_t span = kTileSums * sizeof(float) + kSpanTokens * dim;
    const size_t attention = kernel + span + 2 * rows * (dim + 2) * sizeof(float);
    const size_t row = shape.hidden + 64, heads = static_cast<size_t>(shape.heads + shape.kv_heads) * dim;
    const size_t others = (row > heads ? row : heads) * sizeof(float);
    return ((attention > others ? attention : others) + 4095) / 4096 * 4096;
}

namespace avx2 {
void forward(const Step& step, int thread);
}
namespace avx512 {
void forward(const Step& step, int thread);
}
namespace amx {
void forward(const Step& step, int thread);
}

}  // namespace liuyi
