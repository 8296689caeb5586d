// What a model takes before it computes: matrices, which are packed, vectors, the embedding, and adapters.

#include <atomic>
#include <cstring>
#include <new>

#include "model.h"

namespace liuyi {
namespace {

constexpr int kMostAdapters = 1024;

}  // namespace

Layer& Model::layer(int index) {
    if (index < 0 || index >= shape_.layers) throw Invalid("there is no layer " + std::to_string(index));
    return layers_[index];
}

Linear& Model::matrix(Matrix which, int index) {
    switch (which) {
        case Matrix::qkv: return layer(index).qkv;
        case Matrix::output: return layer(index).output;
        case Matrix::gate_up: return layer(index).gate_up;
        case Matrix::down: return layer(index).down;
        case Matrix::head: return head_;
    }
    throw Invalid("there is no such matrix");
}

void Model::pack(Matrix which, int index, Format format, const Source* sources, int count) {
    Linear& target = matrix(which, index);
    const int query = shape_.heads * shape_.head_dim, key = shape_.kv_heads * shape_.head_dim;
    int rows = shape_.hidden, columns = shape_.hidden;
    switch (which) {
        case Matrix::qkv: rows = query + 2 * key; break;
        case Matrix::output: columns = query; break;
        case Matrix::gate_up: rows = 2 * shape_.intermediate; break;
        case Matrix::down: columns = shape_.intermediate; break;
        case Matrix::head: rows = shape_.vocab; break;
    }
    require(format >= Format::f32 && format <= Format::int4, "there is no such format of weights");
    int given = 0;
    bool bias = false;
    for (int i = 0; i < count; ++i) {
        const Source& source = sources[i];
        require(source.rows > 0 && source.values != nullptr, "a source is empty");
        require(source.format <= Format::bf16 || (source.format == format && source.scales != nullptr),
                "quantised weights can only be packed in their own format, with their scales");
        require(source.format != Format::int4 || source.minima != nullptr, "int4 weights lack their minima");
        given += source.rows;
        bias |= source.bias != nullptr;
    }
    require(given == rows, "the sources have another number of rows than the matrix");
    Linear packed = linear_new(set_, format, rows, columns, which == Matrix::gate_up, bias);
    Tickets panels;
    std::atomic<bool> failed{false};
    threads_.run([&](int) {
        try {
            for (int panel = panels.draw(); panel < packed.panels; panel = panels.draw()) linear_pack(packed, sources, panel);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    });
    if (failed) throw std::bad_alloc();
    target = std::move(packed);
}

void Model::set_vector(Vector which, int index, const float* values, int count) {
    Buffer* target = nullptr;
    int size = shape_.hidden;
    switch (which) {
        case Vector::attention_norm: target = &layer(index).attention_norm; break;
        case Vector::mlp_norm: target = &layer(index).mlp_norm; break;
        case Vector::q_norm: target = &layer(index).q_norm; size = shape_.head_dim; break;
        case Vector::k_norm: target = &layer(index).k_norm; size = shape_.head_dim; break;
        case Vector::final_norm: target = &final_norm_; break;
    }
    require(target != nullptr, "there is no such vector");
    require(count == size, "the vector has another length than the model's");
    Buffer copy(size * sizeof(float));
    std::memcpy(copy.as<float>(), values, size * sizeof(float));
    *target = std::move(copy);
}

void Model::set_embedding(Format format, const void* values) {
    require(format == Format::f32 || format == Format::bf16, "the embedding is float32 or bfloat16");
    const size_t bytes = static_cast<size_t>(shape_.vocab) * shape_.hidden * (format == Format::f32 ? 4 : 2);
    Buffer copy(bytes);
    std::memcpy(copy.as<uint8_t>(), values, bytes);
    embedding_ = std::move(copy);
    embedding_format_ = format;
}

void Model::set_adapter(int slot, int index, int projection, int rank, const float* down, const float* up) {
    require(slot >= 0 && slot < kMostAdapters, "there is no such slot for an adapter");
    require(projection >= 0 && projection < kProjections && rank > 0, "there is no such projection or rank");
    layer(index);
    const size_t query = static_cast<size_t>(shape_.heads) * shape_.head_dim;
    const size_t key = static_cast<size_t>(shape_.kv_heads) * shape_.head_dim;
    size_t rows = shape_.hidden, columns = shape_.hidden;
    switch (static_cast<Projection>(projection)) {
        case q_proj: rows = query; break;
        case k_proj:
        case v_proj: rows = key; break;
        case o_proj: columns = query; break;
        case gate_proj:
        case up_proj: rows = shape_.intermediate; break;
        default: columns = shape_.intermediate; break;
    }
    Buffer kept_down(rank * columns * sizeof(float)), kept_up(rank * rows * sizeof(float));
    std::memcpy(kept_down.as<float>(), down, rank * columns * sizeof(float));
    for (size_t row = 0; row < rows; ++row) {
        for (int r = 0; r < rank; ++r) kept_up.as<float>()[r * rows + row] = up[row * rank + r];
    }
    if (adapters_.size() <= static_cast<size_t>(slot)) adapters_.resize(slot + 1);
    AdapterWeights& adapter = adapters_[slot];
    adapter.layers.resize(shape_.layers);
    const LowRank added{rank, kept_down.as<float>(), kept_up.as<float>()};
    adapter.memory.push_back(std::move(kept_down));
    adapter.memory.push_back(std::move(kept_up));
    adapter.layers[index].of[projection] = added;
}

void Model::drop_adapter(int slot) {
    if (slot >= 0 && static_cast<size_t>(slot) < adapters_.size()) adapters_[slot] = AdapterWeights{};
}

size_t Model::weight_bytes() const {
    size_t bytes = head_.weights.bytes();
    for (const Layer& each : layers_) {
        bytes += each.qkv.weights.bytes() + each.output.weights.bytes() + each.gate_up.weights.bytes() +
                 each.down.weights.bytes();
    }
    return bytes;
}

void Model::check_complete() const {
    bool complete = head_.panels > 0 && final_norm_.bytes() > 0 && embedding_.bytes() > 0;
    for (const Layer& each : layers_) {
        complete = complete && each.qkv.panels > 0 && each.output.panels > 0 && each.gate_up.panels > 0 &&
                   each.down.panels > 0 && each.attention_norm.bytes() > 0 && each.mlp_norm.bytes() > 0;
    }
    require(complete, "the model lacks weights");
}

}  // namespace liuyi
