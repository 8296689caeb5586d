// A model in memory: packed weights, the cache of keys and values, its threads, and scratch memory that grows as needed.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "cpu.h"
#include "draw.h"
#include "linear.h"
#include "plan.h"
#include "step.h"
#include "threads.h"

namespace liuyi {

// What was asked for makes no sense; the text says why.
struct Invalid : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* why) {
    if (!holds) throw Invalid(why);
}

// Low-rank additions to the projections of all layers, and the memory that they point into.
struct AdapterWeights {
    std::vector<LowRanks> layers;
    std::vector<Buffer> memory;
};

enum class Matrix : int { qkv = 0, output = 1, gate_up = 2, down = 3, head = 4 };
enum class Vector : int { attention_norm = 0, mlp_norm = 1, q_norm = 2, k_norm = 3, final_norm = 4 };

class Model {
  public:
    // windows [layers]: keys that a query of the layer sees, 0 for all.
    Model(const Shape& shape, const int32_t* windows, KvFormat kv, int blocks, int threads, InstructionSet set);

    void pack(Matrix which, int layer, Format format, const Source* sources, int count);
    void set_vector(Vector which, int layer, const float* values, int count);
    void set_embedding(Format format, const void* values);  // f32 or bf16, [vocab, hidden]

    // Adds up·(down·x) to a projection for the sequences of the slot; down [rank, columns], up [rows, rank], scaled.
    void set_adapter(int slot, int layer, int projection, int rank, const float* down, const float* up);
    void drop_adapter(int slot);

    void forward(const BatchView& batch, Output output, void* result);
    // The next token of each row, [count].
    void draw(const Draw* rows, int count, int32_t* tokens);
    void score(const Score* rows, int count);

    const KvLayout& kv() const { return kv_; }
    size_t weight_bytes() const;

  private:
    Linear& matrix(Matrix which, int layer);
    void check_complete() const;
    void check(const BatchView& batch) const;
    void check(const Draw& row) const;
    // Into how many blocks tokens are cut. 0, for all of them together, where they are few, or where the weights, which
    // each thread then reads alone, are more than what stays in its cache for that.
    int block_count(int tokens) const;
    void reserve(const Step& step, size_t partial_rows);
    bool find_adapters(const BatchView& batch);
    Layer& layer(int index);
    // work(row, memory) by whichever thread is free; memory is draw_numbers(vocab).
    template <class Work>
    void of_each_row(int count, const Work& work);

    const Shape shape_;
    const InstructionSet set_;
    const KvLayout kv_;
    const int blocks_;
    Threads threads_;
    std::vector<Layer> layers_;
    std::vector<int> windows_;     // the different ones
    std::vector<int> layer_plan_;  // which of them each layer has
    Linear head_{};
    Buffer final_norm_, embedding_, cache_;
    Format embedding_format_ = Format::f32;

    std::vector<AdapterWeights> adapters_;  // by slot; no layers where there is none
    std::vector<const LowRanks*> token_adapters_;

    Placement placement_;
    std::vector<AttentionPlan> plans_, whole_plans_;
    std::vector<Tickets> tickets_;
    Buffer x_, last_x_, qkv_, attended_, middle_, partials_, prepared_, queries_, work_, normed_, gate_up_;
    Buffer choices_, choice_columns_, draw_;
};

}  // namespace liuyi
