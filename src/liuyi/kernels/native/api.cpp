#include "api.h"

#include <cstdio>
#include <cstring>
#include <new>

#include "cpu.h"
#include "model.h"

namespace {

using namespace liuyi;

thread_local char last_error[256];  // to keep it takes no memory, of which there may be none

void keep(const char* error) { std::snprintf(last_error, sizeof last_error, "%s", error); }

template <class Body>
int guarded(const Body& body) {
    try {
        body();
        return 0;
    } catch (const std::bad_alloc&) {
        keep("out of memory");
    } catch (const std::exception& error) {
        keep(error.what());
    }
    return -1;
}

InstructionSet parse(const char* text) {
    for (const InstructionSet set : {InstructionSet::avx2, InstructionSet::avx512, InstructionSet::amx}) {
        if (std::strcmp(text, name(set)) == 0) return set;
    }
    return InstructionSet::none;
}

Model& of(void* model) {
    if (model == nullptr) throw Invalid("there is no model");
    return *static_cast<Model*>(model);
}

}  // namespace

int liuyi_interface() { return kInterface; }

const char* liuyi_error() { return last_error; }

const char* liuyi_compiled() { return name(kCompiled); }

const char* liuyi_instruction_set(const char* most) { return name(best_instruction_set(parse(most))); }

void* liuyi_model_new(const ModelArguments* a, const char* instruction_set) {
    Model* model = nullptr;
    guarded([&] {
        if (a->kv_format < 0 || a->kv_format > static_cast<int>(KvFormat::int8)) throw Invalid("there is no such format of keys and values");
        const Shape shape{a->vocab, a->hidden, a->intermediate, a->layers, a->heads, a->kv_heads, a->head_dim, a->norm_eps};
        model = new Model(shape, a->windows, static_cast<KvFormat>(a->kv_format), a->blocks, a->threads,
                          best_instruction_set(parse(instruction_set)));
    });
    return model;
}

void liuyi_model_free(void* model) { delete static_cast<Model*>(model); }

int liuyi_model_pack(void* model, int which, int layer, int format, const Source* sources, int count) {
    return guarded([&] { of(model).pack(static_cast<Matrix>(which), layer, static_cast<Format>(format), sources, count); });
}

int liuyi_model_set_vector(void* model, int which, int layer, const float* values, int count) {
    return guarded([&] { of(model).set_vector(static_cast<Vector>(which), layer, values, count); });
}

int liuyi_model_set_embedding(void* model, int format, const void* values) {
    return guarded([&] { of(model).set_embedding(static_cast<Format>(format), values); });
}

int liuyi_model_set_adapter(void* model, int slot, int layer, int projection, int rank, const float* down, const float* up) {
    return guarded([&] { of(model).set_adapter(slot, layer, projection, rank, down, up); });
}

int liuyi_model_drop_adapter(void* model, int slot) {
    return guarded([&] { of(model).drop_adapter(slot); });
}

int liuyi_model_forward(void* model, const BatchView* batch, int output, void* result) {
    return guarded([&] {
        if (output < 0 || output > static_cast<int>(Output::chosen)) throw Invalid("there is no such output");
        of(model).forward(*batch, static_cast<Output>(output), result);
    });
}

int liuyi_model_draw(void* model, const Draw* rows, int count, int32_t* tokens) {
    return guarded([&] { of(model).draw(rows, count, tokens); });
}

int liuyi_model_score(void* model, const Score* rows, int count) {
    return guarded([&] { of(model).score(rows, count); });
}

int64_t liuyi_model_block_bytes(void* model) {
    int64_t bytes = -1;
    guarded([&] { bytes = static_cast<int64_t>(of(model).kv().block_bytes); });
    return bytes;
}

int64_t liuyi_model_weight_bytes(void* model) {
    int64_t bytes = -1;
    guarded([&] { bytes = static_cast<int64_t>(of(model).weight_bytes()); });
    return bytes;
}
