// The forward pass of a batch, as one job that all threads run together.
//
// A few tokens go through the layers together, in phases with barriers between: products are cut by panels of their
// weights, everything of a single token by tokens. Of many, a thread takes a block at a time from one layer's attention to
// the next one's, alone, so that what it writes is still in its cache when it reads it. Attention is cut by units of work;
// they and blocks are drawn by threads as they become free. Nothing here depends on how the work was cut.
#pragma once

#include <algorithm>

#include "attention.h"
#include "choose.h"
#include "linear.h"
#include "lora.h"
#include "norm.h"
#include "step.h"

namespace liuyi {
namespace LIUYI_ISA {
namespace {

Range share(int count, int thread, int threads) {
    return {static_cast<int>(static_cast<int64_t>(count) * thread / threads),
            static_cast<int>(static_cast<int64_t>(count) * (thread + 1) / threads)};
}

// Tokens that go on together: all of them, a block, or after the last attention those that results are wanted of. Row i
// of `x`, and of all that is computed from it, is that of token of[i]; without `of`, of token first + i.
struct Rows {
    int first, count;
    float* x;
    const int32_t* of;

    int token(int row) const { return of == nullptr ? first + row : of[row]; }
};

// What one thread does. Scratch memory of the step is for the rows that go on together.
struct Pass {
    const Step& step;
    const int thread, threads;  // of those that share rows

    void wait() const {
        if (threads > 1) step.threads->barrier();
    }
    Range mine(int count) const { return share(count, thread, threads); }
    float* at(const Rows& rows, int row) const { return rows.x + static_cast<size_t>(row) * step.shape.hidden; }

    // Who goes through a layer.
    bool takes_all(int index) const { return step.first_layer <= index && index < step.end_layer; }
    Rows rows_of(int index) const { return {0, takes_all(index) ? step.tokens : step.whole_tokens, step.x, nullptr}; }
    Range pieces_of(int index) const { return {0, takes_all(index) ? step.pieces : step.whole_pieces}; }
    const Plan& plan_of(int index) const {
        return (takes_all(index) ? step.plans : step.whole_plans)[step.layer_plan[index]];
    }

    // The residual stream of the tokens that results are wanted of.
    Rows wanted_rows() const {
        const Range mine = this->mine(step.rows);
        const size_t hidden = step.shape.hidden;
        for (int row = mine.begin; row < mine.end; ++row) {
            std::memcpy(step.last_x + row * hidden, step.x + step.wanted[row] * hidden, hidden * sizeof(float));
        }
        return {0, step.rows, step.last_x, step.wanted};
    }

    // The residual stream before the first layer, or as it was left.
    void begin() const {
        const int hidden = step.shape.hidden;
        const Range tokens = mine(step.tokens);
        for (int token = tokens.begin; token < tokens.end; ++token) {
            const size_t row = static_cast<size_t>(step.ids[token]) * hidden;
            float* x = step.x + static_cast<size_t>(token) * hidden;
            if (step.first_layer > 0 && token >= step.whole_tokens) {
                std::memcpy(x, waiting(token), hidden * sizeof(float));
            } else if (step.embedding_format == Format::f32) {
                std::memcpy(x, static_cast<const float*>(step.embedding) + row, hidden * sizeof(float));
            } else {
                widen(static_cast<const uint16_t*>(step.embedding) + row, hidden, x);
            }
        }
    }

    float* waiting(int token) const {
        return step.residual + static_cast<size_t>(token - step.whole_tokens) * step.shape.hidden;
    }

    // Leaves the residual stream of those that go no further.
    void leave(const Rows& rows) const {
        const Range mine = this->mine(rows.count);
        for (int row = std::max(mine.begin, step.whole_tokens); row < mine.end; ++row) {
            std::memcpy(waiting(row), at(rows, row), step.shape.hidden * sizeof(float));
        }
    }

    // Adds what the token's adapter, if it has one, makes of x for a projection of the layer.
    void adapt(int token, int layer, Projection projection, const float* x, int columns, float* y, int rows) const {
        if (step.adapted && step.adapters[token] != nullptr) {
            add_low_rank(step.adapters[token][layer].of[projection], x, columns, y, rows);
        }
    }

    void adapt_output(const Rows& rows, int layer) const {
        if (!step.adapted) return;
        const int columns = step.shape.heads * step.shape.head_dim;
        const Range mine = this->mine(rows.count);
        for (int row = mine.begin; row < mine.end; ++row) {
            const int token = rows.token(row);
            const float* attended = step.attended + static_cast<size_t>(token) * columns;
            adapt(token, layer, o_proj, attended, columns, at(rows, row), step.shape.hidden);
        }
    }

    void adapt_down(const Rows& rows, int layer) const {
        if (!step.adapted) return;
        const int columns = step.shape.intermediate;
        const Range mine = this->mine(rows.count);
        for (int row = mine.begin; row < mine.end; ++row) {
            const float* middle = step.middle + static_cast<size_t>(row) * columns;
            adapt(rows.token(row), layer, down_proj, middle, columns, at(rows, row), step.shape.hidden);
        }
    }

    float* normed_row(int row, float* scratch) const {
        return step.adapted ? step.normed + static_cast<size_t>(row) * step.shape.hidden : scratch;
    }

    // Norm of the residual stream, made ready for a product.
    void prepare_normed(const Rows& rows, const Linear& linear, const float* norm, float* scratch) const {
        const Range mine = this->mine(rows.count);
        for (int row = mine.begin; row < mine.end; ++row) {
            float* normed = normed_row(row, scratch);
            rms_norm(at(rows, row), norm, step.shape.hidden, step.shape.norm_eps, normed);
            prepare(linear, normed, step.prepared + row * linear.prepared_bytes);
        }
    }

    void prepare_attended(const Rows& rows, const Linear& linear) const {
        const Range mine = this->mine(rows.count);
        for (int row = mine.begin; row < mine.end; ++row) {
            const float* attended = step.attended + static_cast<size_t>(rows.token(row)) * linear.columns;
            prepare(linear, attended, step.prepared + row * linear.prepared_bytes);
        }
    }

    void prepare_middle(const Rows& rows, const Linear& linear) const {
        const Range mine = this->mine(rows.count);
        for (int row = mine.begin; row < mine.end; ++row) {
            const float* middle = step.middle + static_cast<size_t>(row) * linear.columns;
            prepare(linear, middle, step.prepared + row * linear.prepared_bytes);
        }
    }

    // Gate and up apart, so that adapters can add to them.
    void adapt_gates(const Rows& rows, int layer) const {
        const int hidden = step.shape.hidden, size = step.shape.intermediate;
        const Range mine = this->mine(rows.count);
        for (int row = mine.begin; row < mine.end; ++row) {
            float* gate = step.gate_up + static_cast<size_t>(row) * 2 * size;
            adapt(rows.token(row), layer, gate_proj, normed_row(row, nullptr), hidden, gate, size);
            adapt(rows.token(row), layer, up_proj, normed_row(row, nullptr), hidden, gate + size, size);
            swiglu(gate, gate + size, size, step.middle + static_cast<size_t>(row) * size);
        }
    }

    void product(const Linear& linear, int tokens, float* y, size_t stride, Epilogue epilogue) const {
        const Range panels = mine(linear.panels);
        if (panels.begin < panels.end && tokens > 0) {
            multiply(linear, step.prepared, {0, tokens}, panels, y, stride, epilogue);
        }
    }

    // Where the heads of a piece's block lie.
    uint8_t* heads_of(const Piece& piece, int layer) const {
        const size_t entry = static_cast<size_t>(piece.sequence) * step.most_blocks + piece.position / kBlockTokens;
        return step.cache + step.tables[entry] * step.kv.block_bytes + layer * step.kv.layer_bytes;
    }

    template <class Kv>
    void ask_for_slots(const Piece& piece, int layer) const {
        const uint8_t* head = heads_of(piece, layer);
        for (int i = 0; i < step.shape.kv_heads; ++i, head += step.kv.head_bytes) {
            Kv::ask_for_slot(head, step.kv.dim, piece.position % kBlockTokens);
        }
    }

    // Norms and rotations of queries and keys; keys and values into the cache. A block of it is filled by one thread.
    template <class Kv>
    void keep(const Rows& rows, Range pieces, const Layer& layer, int index, float* head_rows) const {
        const Shape& shape = step.shape;
        const int width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim, group = shape.heads / shape.kv_heads;
        const int half = shape.head_dim / 2, dim = step.kv.dim;
        const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(shape.head_dim));
        const int turned = shape.heads + shape.kv_heads;
        const Range mine = this->mine(pieces.end - pieces.begin);
        for (int p = pieces.begin + mine.begin; p < pieces.begin + mine.end; ++p) {
            const Piece& piece = step.piece_list[p];
            uint8_t* heads = heads_of(piece, index);
            const int slot = piece.position % kBlockTokens;
            if (p + 1 < pieces.begin + mine.end) ask_for_slots<Kv>(step.piece_list[p + 1], index);
            // What a block held before may not be finite, and unseen values are multiplied by zero, not left out.
            if (slot == 0) std::memset(heads, 0, step.kv.layer_bytes);
            for (int i = 0; i < piece.count; ++i) {
                const int token = piece.token + i;
                float* projected = step.qkv + static_cast<size_t>(token - rows.first) * width;
                const float* row = projected;
                const float* normed = normed_row(token - rows.first, nullptr);
                const int queries = shape.heads * shape.head_dim, keys = shape.kv_heads * shape.head_dim;
                adapt(token, index, q_proj, normed, shape.hidden, projected, queries);
                adapt(token, index, k_proj, normed, shape.hidden, projected + queries, keys);
                adapt(token, index, v_proj, normed, shape.hidden, projected + queries + keys, keys);
                const size_t angle = static_cast<size_t>(step.angles_by_token ? token : piece.position + i) * half;
                const float *cosines = step.cosines + angle, *sines = step.sines + angle;
                if (dim > shape.head_dim) std::memset(head_rows, 0, static_cast<size_t>(turned) * dim * sizeof(float));
                for (int head = 0; head < turned; ++head, row += shape.head_dim) {
                    const bool query = head < shape.heads;
                    const float* norm = (query ? layer.q_norm : layer.k_norm).as<float>();
                    rotate(row, norm, shape.norm_eps, cosines, sines, half, query ? scale : 1.0f, head_rows + head * dim);
                }
                Kv::turn(head_rows, turned, dim);
                const float* head_row = head_rows;
                for (int head = 0; head < shape.heads; ++head, head_row += dim) {
                    const size_t at = (static_cast<size_t>(head / group) * step.tokens + token) * group + head % group;
                    Kv::write_query(head_row, dim, step.queries + at * step.kv.query_bytes);
                }
                for (int head = 0; head < shape.kv_heads; ++head, head_row += dim) {
                    Kv::write_key(heads + head * step.kv.head_bytes, dim, slot + i, head_row);
                }
                for (int head = 0; head < shape.kv_heads; ++head, row += shape.head_dim) {
                    float* value = head_rows;
                    std::memcpy(value, row, shape.head_dim * sizeof(float));
                    std::memset(value + shape.head_dim, 0, (dim - shape.head_dim) * sizeof(float));
                    Kv::write_value(heads + head * step.kv.head_bytes, dim, slot + i, value);
                }
            }
        }
    }

    template <class Kv>
    void attend_all(const Plan& plan, int index, uint8_t* work) const {
        Tickets& tickets = step.tickets[index];
        for (int unit = tickets.draw(); unit < plan.unit_count; unit = tickets.draw()) {
            attend<Kv>(step, plan, plan.units[unit], index, work);
        }
    }

    // From the residual stream to queries, keys and values.
    template <class Kv>
    void open_layer(const Rows& rows, Range pieces, int index, float* scratch) const {
        const Shape& shape = step.shape;
        const Layer& layer = step.layers[index];
        const size_t width = static_cast<size_t>(shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        prepare_normed(rows, layer.qkv, layer.attention_norm.as<float>(), scratch);
        wait();
        product(layer.qkv, rows.count, step.qkv, width, Epilogue::store);
        wait();
        keep<Kv>(rows, pieces, layer, index, scratch);
    }

    // From what attention gave to the residual stream after the layer.
    void close_layer(const Rows& rows, int index, float* scratch) const {
        const Shape& shape = step.shape;
        const Layer& layer = step.layers[index];
        join_tokens(rows, plan_of(index));
        prepare_attended(rows, layer.output);
        wait();
        product(layer.output, rows.count, rows.x, shape.hidden, Epilogue::add);
        wait();
        adapt_output(rows, index);
        prepare_normed(rows, layer.gate_up, layer.mlp_norm.as<float>(), scratch);
        wait();
        if (step.adapted) {
            product(layer.gate_up, rows.count, step.gate_up, 2 * static_cast<size_t>(shape.intermediate), Epilogue::store);
            wait();
            adapt_gates(rows, index);
        } else {
            product(layer.gate_up, rows.count, step.middle, shape.intermediate, Epilogue::swiglu);
            wait();
        }
        prepare_middle(rows, layer.down);
        wait();
        product(layer.down, rows.count, rows.x, shape.hidden, Epilogue::add);
        wait();
        adapt_down(rows, index);
    }

    void join_tokens(const Rows& rows, const Plan& plan) const {
        const Range mine = this->mine(rows.count);
        for (int row = mine.begin; row < mine.end; ++row) join_token(step, plan, rows.token(row));
    }

    // One thread's blocks: closes the layer before this one and opens it.
    template <class Kv>
    void pass_blocks(int index, float* scratch) const {
        const Shape& shape = step.shape;
        const Step own = with_own_scratch();
        const Pass alone{own, 0, 1};
        for (int i = step.block_tickets[index].draw(); i < step.blocks; i = step.block_tickets[index].draw()) {
            const Block& block = step.block_list[i];
            const Rows rows{block.token, block.count, step.x + static_cast<size_t>(block.token) * shape.hidden, nullptr};
            if (index > 0) alone.close_layer(rows, index - 1, scratch);
            alone.open_layer<Kv>(rows, {block.first_piece, block.end_piece}, index, scratch);
        }
    }

    // The step with this thread's part of the scratch memory for rows.
    Step with_own_scratch() const {
        const Shape& shape = step.shape;
        const size_t first = static_cast<size_t>(thread) * step.block_rows;
        Step own = step;
        own.qkv += first * (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        own.middle += first * shape.intermediate;
        own.prepared += first * step.prepared_bytes;
        if (step.adapted) {
            own.normed += first * shape.hidden;
            own.gate_up += first * 2 * shape.intermediate;
        }
        return own;
    }

    template <class Kv>
    void run() const {
        uint8_t* work = step.work + thread * step.work_bytes;
        float* scratch = reinterpret_cast<float*>(work);
        const int layers = step.shape.layers;
        const int first = step.whole_tokens > 0 ? 0 : step.first_layer;
        const int end = step.whole_tokens > 0 ? layers : step.end_layer;
        begin();
        if (step.blocks > 0 || step.whole_tokens < step.tokens) wait();
        for (int index = first; index < end; ++index) {
            if (step.blocks > 0) {
                pass_blocks<Kv>(index, scratch);
            } else {
                if (index > first) close_for_all(index - 1, scratch);
                open_layer<Kv>(rows_of(index), pieces_of(index), index, scratch);
            }
            // What follows in the last layer is for nothing but the results.
            if (index == layers - 1 && step.rows == 0) return;
            wait();
            attend_all<Kv>(plan_of(index), index, work);
            wait();
        }
        if (end < layers) return close_for_all(end - 1, scratch);
        const Rows rows = step.last_x == nullptr ? rows_of(layers - 1) : wanted_rows();
        close_layer(rows, layers - 1, scratch);
        finish_rows(rows, scratch);
    }

    void close_for_all(int index, float* scratch) const {
        const Rows rows = rows_of(index);
        close_layer(rows, index, scratch);
        if (index + 1 == step.end_layer) leave(rows);
        // Others' rows are a thread's own from here on.
        if (takes_all(index) != takes_all(index + 1)) wait();
    }

    void finish_rows(const Rows& rows, float* scratch) const {
        const Shape& shape = step.shape;
        const bool hidden = step.output == Output::hidden;
        const Range mine = this->mine(step.rows);
        for (int i = mine.begin; i < mine.end; ++i) {
            float* normed = hidden ? static_cast<float*>(step.result) + static_cast<size_t>(i) * shape.hidden : scratch;
            rms_norm(at(rows, i), step.final_norm, shape.hidden, shape.norm_eps, normed);
            if (!hidden) prepare(*step.head, normed, step.prepared + i * step.head->prepared_bytes);
        }
        if (hidden) return;
        wait();
        if (step.output == Output::chosen) return choose_tokens();
        product(*step.head, step.rows, static_cast<float*>(step.result), shape.vocab, Epilogue::store);
    }

    // Each thread of its own columns, then of all threads' in their order, so that of equal ones the first is taken.
    void choose_tokens() const {
        const size_t rows = step.rows;
        choose(step, mine(step.head->panels), step.choice_columns + thread * rows * kChoiceColumns, step.choices + thread * rows);
        wait();
        if (thread > 0) return;
        for (size_t row = 0; row < rows; ++row) {
            Choice chosen = step.choices[row];
            for (int other = 1; other < threads; ++other) {
                const Choice& found = step.choices[other * rows + row];
                if (found.score > chosen.score) chosen = found;
            }
            static_cast<int32_t*>(step.result)[row] = chosen.token;
        }
    }
};

}  // namespace

void forward(const Step& step, int thread) {
    const Pass pass{step, thread, step.threads->count()};
    switch (step.kv.format) {
        case KvFormat::f32: return pass.run<FloatKv<float>>();
#ifdef LIUYI_HAS_TILES
        case KvFormat::bf16: return pass.run<Bf16TileKv>();
        case KvFormat::int8: return pass.run<Int8TileKv>();
#else
        case KvFormat::bf16: return pass.run<FloatKv<uint16_t>>();
        case KvFormat::int8: return pass.run<Int8Kv>();
#endif
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
