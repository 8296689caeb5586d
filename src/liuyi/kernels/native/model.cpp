#include "model.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace liuyi {
namespace {

constexpr int kMostSize = 1 << 24;  // so that twice as much is still a number

// Tokens of a block. Fewer for each thread than the least are no slower together; more than the most leave its cache.
constexpr int kLeastBlockRows = 192;
constexpr int kMostBlockRows = 256;

KvLayout layout(const Shape& shape, KvFormat format) {
    KvLayout kv{};
    kv.format = format;
    kv.dim = (shape.head_dim + 15) / 16 * 16;
    const size_t values = size_t{2} * kBlockTokens * kv.dim;
    switch (format) {
        case KvFormat::f32: kv.head_bytes = 4 * values; break;
        case KvFormat::bf16: kv.head_bytes = 2 * values; break;
        case KvFormat::int8: kv.head_bytes = values + 2 * kBlockTokens * sizeof(float); break;
    }
    kv.query_bytes = format == KvFormat::int8 ? (2 * kv.dim + 16 + 63) / 64 * 64 : 4 * kv.dim;
    kv.layer_bytes = kv.head_bytes * shape.kv_heads;
    kv.block_bytes = kv.layer_bytes * shape.layers;
    return kv;
}

Shape checked(const Shape& shape) {
    require(shape.vocab > 0 && shape.hidden > 0 && shape.intermediate > 0 && shape.layers > 0 && shape.heads > 0 &&
                shape.kv_heads > 0 && shape.head_dim > 0,
            "a size of the model is not positive");
    for (const int size : {shape.vocab, shape.hidden, shape.intermediate, shape.layers, shape.heads}) {
        require(size <= kMostSize, "a size of the model is beyond what there is room for");
    }
    require(shape.heads % shape.kv_heads == 0, "the number of heads is not a multiple of the number of kv heads");
    require(shape.head_dim % 2 == 0 && shape.head_dim <= kMostHeadDim, "head_dim must be even and at most 256");
    require(shape.heads <= kMostSize / shape.head_dim, "the heads are wider than what there is room for");
    return shape;
}

// The sequences that go through all layers.
BatchView whole(const BatchView& batch) {
    BatchView rest = batch;
    if (batch.end_layer > 0) rest.tokens -= batch.counts[--rest.sequences];
    return rest;
}

}  // namespace

Model::Model(const Shape& shape, const int32_t* windows, KvFormat kv, int blocks, int threads, InstructionSet set)
    : shape_(checked(shape)),
      set_(set),
      kv_(layout(shape, kv)),
      blocks_(blocks),
      threads_(std::clamp(threads, 1, 256)),
      layers_(shape.layers),
      tickets_(2 * shape.layers) {
    require(blocks > 0, "the cache needs at least one block");
    require(set != InstructionSet::none, "this processor lacks AVX2");
    for (int i = 0; i < shape.layers; ++i) {
        require(windows[i] >= 0, "a window is negative");
        const auto found = std::find(windows_.begin(), windows_.end(), windows[i]);
        layer_plan_.push_back(static_cast<int>(found - windows_.begin()));
        if (found == windows_.end()) windows_.push_back(windows[i]);
        layers_[i].window = windows[i];
    }
    plans_.resize(windows_.size());
    whole_plans_.resize(windows_.size());
    // Memory is taken as it is touched: what there is not would be noticed too late.
    const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    require(kv_.block_bytes <= memory / blocks, "the cache would not fit into this machine's memory");
    cache_ = Buffer(kv_.block_bytes * blocks);
}

// Which additions each token gets; whether any gets one.
bool Model::find_adapters(const BatchView& batch) {
    bool any = false;
    token_adapters_.clear();
    for (int i = 0; i < batch.sequences; ++i) {
        const int slot = batch.adapters[i];
        const LowRanks* layers = slot < 0 ? nullptr : adapters_[slot].layers.data();
        any = any || layers != nullptr;
        token_adapters_.insert(token_adapters_.end(), batch.counts[i], layers);
    }
    return any;
}

void Model::check(const BatchView& batch) const {
    require(batch.tokens > 0 && batch.sequences > 0 && batch.most_blocks > 0 && batch.rows >= 0, "the batch is empty");
    int64_t tokens = 0;
    for (int i = 0; i < batch.sequences; ++i) {
        const int64_t count = batch.counts[i], length = batch.lengths[i];
        require(count > 0 && length >= 0, "a sequence has no new tokens, or a negative length");
        tokens += count;
        const int slot = batch.adapters[i];
        require(slot < 0 || (static_cast<size_t>(slot) < adapters_.size() && !adapters_[slot].layers.empty()),
                "a sequence names an adapter that there is not");
        const int64_t blocks = (length + count + kBlockTokens - 1) / kBlockTokens;
        require(blocks <= batch.most_blocks, "a table of blocks is too short for its sequence");
        require(length + count <= INT32_MAX, "a sequence is longer than can be counted");
        require(batch.angles_by_token || length + count <= batch.angles, "a position has no angles");
        for (int64_t j = 0; j < blocks; ++j) {
            const int32_t block = batch.tables[static_cast<int64_t>(i) * batch.most_blocks + j];
            require(block >= 0 && block < blocks_, "a table names a block that there is not");
        }
    }
    require(tokens == batch.tokens, "the counts do not add up to the number of tokens");
    require(!batch.angles_by_token || batch.angles == batch.tokens, "a token has no angles");
    for (int i = 0; i < batch.tokens; ++i) {
        require(batch.ids[i] >= 0 && batch.ids[i] < shape_.vocab, "a token is not in the vocabulary");
    }
    for (int i = 0; i < batch.rows; ++i) {
        require(batch.wanted[i] >= 0 && batch.wanted[i] < batch.tokens, "a wanted row is not in the batch");
        require(i == 0 || batch.wanted[i] > batch.wanted[i - 1], "the wanted rows do not rise");
    }
    require(batch.temperatures == nullptr || batch.keys != nullptr, "draws need the keys of their noise");
    if (batch.end_layer == 0) return;
    require(0 <= batch.first_layer && batch.first_layer < batch.end_layer && batch.end_layer <= shape_.layers,
            "there are no such layers");
    require(batch.residual != nullptr, "some of the layers need a residual stream");
    require(batch.end_layer == shape_.layers || batch.rows == 0 ||
                batch.wanted[batch.rows - 1] < batch.tokens - batch.counts[batch.sequences - 1],
            "a wanted row does not reach the last layer");
}

int Model::block_count(int tokens) const {
    const int threads = threads_.count(), each = (tokens + threads - 1) / threads;
    if (each < kLeastBlockRows) return 0;
    const Layer& layer = layers_.front();
    size_t weights = 0;
    for (const Linear* linear : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
        weights += linear->panel_bytes * linear->panels;
    }
    const size_t row = sizeof(float) * (layer.qkv.rows + 2 * shape_.hidden + shape_.intermediate);
    if (weights > row * tokens) return 0;
    return threads * ((each + kMostBlockRows - 1) / kMostBlockRows);
}

void Model::reserve(const Step& step, size_t partial_rows) {
    const auto floats = [](size_t rows, size_t columns) { return (rows * columns + 64) * sizeof(float); };
    const size_t all = step.tokens, tokens = std::max(all, static_cast<size_t>(step.block_rows) * threads_.count());
    x_.grow(floats(all, shape_.hidden));
    if (step.rows < step.tokens) last_x_.grow(floats(step.rows, shape_.hidden));
    qkv_.grow(floats(tokens, (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim));
    attended_.grow(floats(all, shape_.heads * shape_.head_dim));
    middle_.grow(floats(tokens, shape_.intermediate));
    if (step.adapted) {
        normed_.grow(floats(tokens, shape_.hidden));
        gate_up_.grow(floats(tokens, 2 * static_cast<size_t>(shape_.intermediate)));
    }
    partials_.grow(floats(partial_rows, partial_floats(kv_.dim)));
    prepared_.grow(std::max(head_.prepared_bytes * step.rows, step.prepared_bytes * tokens) + 64);
    queries_.grow((all * shape_.heads + kMostKernelRows) * kv_.query_bytes);
    work_.grow(work_bytes(shape_, kv_.dim) * threads_.count());
    if (step.output == Output::chosen) {
        choices_.grow(sizeof(Choice) * step.rows * threads_.count());
        choice_columns_.grow(floats(static_cast<size_t>(step.rows) * threads_.count(), kChoiceColumns));
    }
}

void Model::forward(const BatchView& batch, Output output, void* result) {
    check_complete();
    check(batch);
    const BatchView rest = whole(batch);
    const bool apart = rest.tokens < batch.tokens;  // whether the last sequence goes through some layers only
    placement_.build(batch);
    placement_.cut(batch.tokens, apart ? 0 : block_count(batch.tokens));
    size_t partial_rows = 0;
    const auto planned = [&](std::vector<AttentionPlan>& plans, const BatchView& of) {
        std::vector<Plan> views;
        for (size_t i = 0; i < plans.size(); ++i) {
            plans[i].build(of, shape_, windows_[i], threads_.count());
            partial_rows = std::max(partial_rows, plans[i].partial_rows);
            views.push_back(plans[i].view());
        }
        return views;
    };
    const std::vector<Plan> plans = planned(plans_, batch);
    const std::vector<Plan> whole_plans = apart ? planned(whole_plans_, rest) : plans;
    for (Tickets& each : tickets_) each.reset();

    Step step{};
    step.output = output;
    step.shape = shape_;
    step.kv = kv_;
    step.layers = layers_.data();
    step.head = &head_;
    step.final_norm = final_norm_.as<float>();
    step.embedding_format = embedding_format_;
    step.embedding = embedding_.as<void>();
    step.cache = cache_.as<uint8_t>();
    step.threads = &threads_;
    step.tokens = batch.tokens;
    step.sequences = batch.sequences;
    step.most_blocks = batch.most_blocks;
    step.rows = batch.rows;
    step.ids = batch.ids;
    step.tables = batch.tables;
    step.wanted = batch.wanted;
    step.cosines = batch.cosines;
    step.sines = batch.sines;
    step.angles_by_token = batch.angles_by_token != 0;
    step.positions = placement_.positions.data();
    step.whole_tokens = rest.tokens;
    step.first_layer = apart ? batch.first_layer : 0;
    step.end_layer = apart ? batch.end_layer : shape_.layers;
    step.residual = batch.residual;
    step.pieces = static_cast<int>(placement_.pieces.size());
    step.whole_pieces = step.pieces;
    while (apart && step.whole_pieces > 0 && placement_.pieces[step.whole_pieces - 1].sequence == rest.sequences) {
        --step.whole_pieces;
    }
    step.piece_list = placement_.pieces.data();
    step.blocks = static_cast<int>(placement_.blocks.size());
    step.block_rows = placement_.block_rows;
    step.block_list = placement_.blocks.data();
    step.plans = plans.data();
    step.whole_plans = whole_plans.data();
    step.layer_plan = layer_plan_.data();
    step.tickets = tickets_.data();
    step.block_tickets = tickets_.data() + shape_.layers;
    step.adapted = find_adapters(batch);
    step.adapters = token_adapters_.data();
    for (const Layer& each : layers_) {
        for (const Linear* linear : {&each.qkv, &each.output, &each.gate_up, &each.down}) {
            step.prepared_bytes = std::max(step.prepared_bytes, linear->prepared_bytes);
        }
    }
    reserve(step, partial_rows);
    step.normed = normed_.as<float>();
    step.gate_up = gate_up_.as<float>();
    step.x = x_.as<float>();
    step.last_x = batch.rows < batch.tokens ? last_x_.as<float>() : nullptr;
    step.qkv = qkv_.as<float>();
    step.attended = attended_.as<float>();
    step.middle = middle_.as<float>();
    step.partials = partials_.as<float>();
    step.prepared = prepared_.as<uint8_t>();
    step.queries = queries_.as<uint8_t>();
    step.work = work_.as<uint8_t>();
    step.work_bytes = work_bytes(shape_, kv_.dim);
    step.result = result;
    step.temperatures = batch.temperatures;
    step.keys = batch.keys;
    step.choices = choices_.as<Choice>();
    step.choice_columns = choice_columns_.as<float>();
    const auto forward = LIUYI_FOR(set_, forward);
    threads_.run([&](int thread) { forward(step, thread); });
}

template <class Work>
void Model::of_each_row(int count, const Work& work) {
    const size_t numbers = draw_numbers(shape_.vocab);
    draw_.grow(sizeof(float) * numbers * threads_.count());
    Tickets tickets;
    threads_.run([&](int thread) {
        float* memory = draw_.as<float>() + thread * numbers;
        for (int i = tickets.draw(); i < count; i = tickets.draw()) work(i, memory);
    });
}

void Model::check(const Draw& row) const {
    const auto known = [&](const int32_t* tokens, int count) {
        return count >= 0 && std::all_of(tokens, tokens + count, [&](int32_t token) { return token >= 0 && token < shape_.vocab; });
    };
    require(known(row.seen, row.seen_count) && known(row.biased, row.biased_count), "a token is not in the vocabulary");
    require(row.temperature >= 0, "a temperature is negative or no number");
    require(row.min_p <= 1, "min_p is above 1 or no number");
}

void Model::draw(const Draw* rows, int count, int32_t* tokens) {
    std::for_each(rows, rows + count, [&](const Draw& row) { check(row); });
    const auto draw = LIUYI_VECTORS_FOR(set_, draw);
    of_each_row(count, [&](int i, float* memory) { tokens[i] = draw(rows[i], shape_.vocab, memory); });
}

void Model::score(const Score* rows, int count) {
    for (int i = 0; i < count; ++i) {
        require(rows[i].token >= 0 && rows[i].token < shape_.vocab, "a token is not in the vocabulary");
        require(rows[i].top >= 0 && rows[i].top <= shape_.vocab, "there are not so many tokens");
    }
    const auto score = LIUYI_VECTORS_FOR(set_, score);
    of_each_row(count, [&](int i, float* memory) { score(rows[i], shape_.vocab, memory); });
}

}  // namespace liuyi
