// The forward pass of a batch, as one job that all threads run together: the layers as phases with barriers between.
//
// Products are cut by panels of their weights, everything of a single token by tokens, attention by units of work that
// threads draw as they become free. Nothing here depends on how the work was cut.
#pragma once

#include "attention.h"
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

struct Pass {
    const Step& step;
    const int thread, threads;

    void wait() const { step.threads->barrier(); }
    Range mine(int count) const { return share(count, thread, threads); }
    float* x(int token) const { return step.x + static_cast<size_t>(token) * step.shape.hidden; }

    void embed() const {
        const int hidden = step.shape.hidden;
        const Range tokens = mine(step.tokens);
        for (int token = tokens.begin; token < tokens.end; ++token) {
            const size_t row = static_cast<size_t>(step.ids[token]) * hidden;
            if (step.embedding_format == Format::f32) {
                std::memcpy(x(token), static_cast<const float*>(step.embedding) + row, hidden * sizeof(float));
            } else {
                widen(static_cast<const uint16_t*>(step.embedding) + row, hidden, x(token));
            }
        }
    }

    // Adds what the token's adapter, if it has one, makes of x for a projection of the layer.
    void adapt(int token, int layer, Projection projection, const float* x, int columns, float* y, int rows) const {
        if (step.adapted && step.adapters[token] != nullptr) {
            add_low_rank(step.adapters[token][layer].of[projection], x, columns, y, rows);
        }
    }

    void adapt_output(int token, int layer) const {
        const int columns = step.shape.heads * step.shape.head_dim;
        adapt(token, layer, o_proj, step.attended + static_cast<size_t>(token) * columns, columns, x(token), step.shape.hidden);
    }

    void adapt_down(int token, int layer) const {
        const int columns = step.shape.intermediate;
        adapt(token, layer, down_proj, step.middle + static_cast<size_t>(token) * columns, columns, x(token), step.shape.hidden);
    }

    float* normed_row(int token, float* scratch) const {
        return step.adapted ? step.normed + static_cast<size_t>(token) * step.shape.hidden : scratch;
    }

    // Norm of the residual stream, made ready for a product.
    void prepare_normed(const Linear& linear, const float* norm, float* scratch) const {
        const Range tokens = mine(step.tokens);
        for (int token = tokens.begin; token < tokens.end; ++token) {
            float* normed = normed_row(token, scratch);
            rms_norm(x(token), norm, step.shape.hidden, step.shape.norm_eps, normed);
            prepare(linear, normed, step.prepared + token * linear.prepared_bytes);
        }
    }

    // Gate and up apart, so that adapters can add to them.
    void adapt_gates(int layer) const {
        const int hidden = step.shape.hidden, size = step.shape.intermediate;
        const Range tokens = mine(step.tokens);
        for (int token = tokens.begin; token < tokens.end; ++token) {
            float* gate = step.gate_up + static_cast<size_t>(token) * 2 * size;
            adapt(token, layer, gate_proj, normed_row(token, nullptr), hidden, gate, size);
            adapt(token, layer, up_proj, normed_row(token, nullptr), hidden, gate + size, size);
            swiglu(gate, gate + size, size, step.middle + static_cast<size_t>(token) * size);
        }
    }

    void prepare_rows(const Linear& linear, const float* rows) const {
        const Range tokens = mine(step.tokens);
        for (int token = tokens.begin; token < tokens.end; ++token) {
            prepare(linear, rows + static_cast<size_t>(token) * linear.columns, step.prepared + token * linear.prepared_bytes);
        }
    }

    void product(const Linear& linear, int tokens, float* y, size_t stride, Epilogue epilogue) const {
        const Range panels = mine(linear.panels);
        if (panels.begin < panels.end && tokens > 0) {
            multiply(linear, step.prepared, {0, tokens}, panels, y, stride, epilogue);
        }
    }

    // Norms and rotations of queries and keys; keys and values into the cache. A block is filled by one thread.
    template <class Kv>
    void keep(const Layer& layer, int index, float* head_row) const {
        const Shape& shape = step.shape;
        const int width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim, group = shape.heads / shape.kv_heads;
        const int half = shape.head_dim / 2, dim = step.kv.dim;
        const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(shape.head_dim));
        std::memset(head_row, 0, dim * sizeof(float));
        const Range pieces = mine(step.pieces);
        for (int p = pieces.begin; p < pieces.end; ++p) {
            const Piece& piece = step.piece_list[p];
            const int32_t block =
                step.tables[static_cast<size_t>(piece.sequence) * step.most_blocks + piece.position / kBlockTokens];
            uint8_t* heads = step.cache + block * step.kv.block_bytes + index * step.kv.layer_bytes;
            const int slot = piece.position % kBlockTokens;
            // What a block held before may not be finite, and unseen values are multiplied by zero, not left out.
            if (slot == 0) std::memset(heads, 0, step.kv.layer_bytes);
            for (int i = 0; i < piece.count; ++i) {
                const int token = piece.token + i;
                float* projected = step.qkv + static_cast<size_t>(token) * width;
                const float* row = projected;
                const float* normed = normed_row(token, nullptr);
                const int queries = shape.heads * shape.head_dim, keys = shape.kv_heads * shape.head_dim;
                adapt(token, index, q_proj, normed, shape.hidden, projected, queries);
                adapt(token, index, k_proj, normed, shape.hidden, projected + queries, keys);
                adapt(token, index, v_proj, normed, shape.hidden, projected + queries + keys, keys);
                const size_t angle = static_cast<size_t>(step.angles_by_token ? token : piece.position + i) * half;
                const float *cosines = step.cosines + angle, *sines = step.sines + angle;
                for (int head = 0; head < shape.heads; ++head, row += shape.head_dim) {
                    rotate(row, layer.q_norm.as<float>(), shape.norm_eps, cosines, sines, half, scale, head_row);
                    const size_t at = (static_cast<size_t>(head / group) * step.tokens + token) * group + head % group;
                    Kv::write_query(head_row, dim, step.queries + at * step.kv.query_bytes);
                }
                for (int head = 0; head < shape.kv_heads; ++head, row += shape.head_dim) {
                    rotate(row, layer.k_norm.as<float>(), shape.norm_eps, cosines, sines, half, 1.0f, head_row);
                    Kv::write_key(heads + head * step.kv.head_bytes, dim, slot + i, head_row);
                }
                for (int head = 0; head < shape.kv_heads; ++head, row += shape.head_dim) {
                    std::memcpy(head_row, row, shape.head_dim * sizeof(float));
                    Kv::write_value(heads + head * step.kv.head_bytes, dim, slot + i, head_row);
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

    void join_mine(const Plan& plan) const {
        const Range tokens = mine(step.tokens);
        for (int token = tokens.begin; token < tokens.end; ++token) join_token(step, plan, token);
    }

    void adapt_mine(void (Pass::*addition)(int, int) const, int layer) const {
        if (!step.adapted) return;
        const Range tokens = mine(step.tokens);
        for (int token = tokens.begin; token < tokens.end; ++token) (this->*addition)(token, layer);
    }

    template <class Kv>
    void run() const {
        const Shape& shape = step.shape;
        const size_t width = static_cast<size_t>(shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        uint8_t* work = step.work + thread * step.work_bytes;
        float* row = reinterpret_cast<float*>(work);
        embed();
        for (int index = 0; index < shape.layers; ++index) {
            const Layer& layer = step.layers[index];
            const Plan& plan = step.plans[step.layer_plan[index]];
            if (index > 0) adapt_mine(&Pass::adapt_down, index - 1);
            prepare_normed(layer.qkv, layer.attention_norm.as<float>(), row);
            wait();
            product(layer.qkv, step.tokens, step.qkv, width, Epilogue::store);
            wait();
            keep<Kv>(layer, index, row);
            wait();
            attend_all<Kv>(plan, index, work);
            wait();
            join_mine(plan);
            prepare_rows(layer.output, step.attended);
            wait();
            product(layer.output, step.tokens, step.x, shape.hidden, Epilogue::add);
            wait();
            adapt_mine(&Pass::adapt_output, index);
            prepare_normed(layer.gate_up, layer.mlp_norm.as<float>(), row);
            wait();
            if (step.adapted) {
                product(layer.gate_up, step.tokens, step.gate_up, 2 * static_cast<size_t>(shape.intermediate), Epilogue::store);
                wait();
                adapt_gates(index);
            } else {
                product(layer.gate_up, step.tokens, step.middle, shape.intermediate, Epilogue::swiglu);
                wait();
            }
            prepare_rows(layer.down, step.middle);
            wait();
            product(layer.down, step.tokens, step.x, shape.hidden, Epilogue::add);
            wait();
        }
        finish_rows(row);
    }

    void finish_rows(float* row) const {
        const Shape& shape = step.shape;
        const Range rows = mine(step.rows);
        for (int i = rows.begin; i < rows.end; ++i) {
            float* normed = step.want_hidden ? step.result + static_cast<size_t>(i) * shape.hidden : row;
            adapt_down(step.wanted[i], shape.layers - 1);
            rms_norm(x(step.wanted[i]), step.final_norm, shape.hidden, shape.norm_eps, normed);
            if (!step.want_hidden) prepare(*step.head, normed, step.prepared + i * step.head->prepared_bytes);
        }
        if (step.want_hidden) return;
        wait();
        product(*step.head, step.rows, step.result, shape.vocab, Epilogue::store);
    }
};

}  // namespace

void forward(const Step& step, int thread) {
    const Pass pass{step, thread, step.threads->count()};
    switch (step.kv.format) {
        case KvFormat::f32: return pass.run<FloatKv<float>>();
        case KvFormat::bf16: return pass.run<FloatKv<uint16_t>>();
        case KvFormat::int8: return pass.run<Int8Kv>();
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
