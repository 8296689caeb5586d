// Making and filling packed matrices; the layouts are described in linear.h.

#include "linear.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace liuyi {
namespace {

constexpr int kHalf = kPanel / 2;

int round_up(int n, int step) { return (n + step - 1) / step * step; }
size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

float from_bf16(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint16_t nearest_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The smallest bfloat16 that is no smaller; x ≥ 0.
uint16_t bf16_above(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0xffff) >> 16);
}

// vdpbf16ps does twice the work of a float32 product on AMD's cores (Zen 4 on) and no more on Intel's without AMX.
bool bf16_products_pay() {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16");
}

struct Place {
    const Source* source;
    int row;
};

Place find_row(const Source* sources, int row) {
    while (row >= sources->rows) row -= (sources++)->rows;
    return {sources, row};
}

// The columns of one row in float32, with zeros up to depth.
void read_floats(const Place& place, int columns, int depth, float* out) {
    const size_t start = static_cast<size_t>(place.row) * columns;
    if (place.source->format == Format::f32) {
        std::memcpy(out, static_cast<const float*>(place.source->values) + start, sizeof(float) * columns);
    } else {
        const uint16_t* values = static_cast<const uint16_t*>(place.source->values) + start;
        for (int k = 0; k < columns; ++k) out[k] = from_bf16(values[k]);
    }
    for (int k = columns; k < depth; ++k) out[k] = 0.0f;
}

// Symmetric: the largest of the group is ±127, or a little less by the rounding of the scale.
uint16_t quantize_int8(const float* x, int group, int8_t* out) {
    float largest = 0.0f;
    for (int k = 0; k < group; ++k) largest = std::fmax(largest, std::fabs(x[k]));
    const uint16_t bits = bf16_above(largest / 127.0f);
    const float scale = from_bf16(bits);
    for (int k = 0; k < group; ++k) out[k] = scale > 0.0f ? static_cast<int8_t>(std::lrint(x[k] / scale)) : 0;
    return bits;
}

struct Int4Scale {
    uint16_t scale, minimum;
};

// The squared error of x as scale·q + minimum, writing q.
float try_int4(const float* x, int count, float scale, float minimum, uint8_t* out) {
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    float error = 0.0f;
    for (int k = 0; k < count; ++k) {
        const float q = std::fmin(15.0f, std::fmax(0.0f, std::nearbyint((x[k] - minimum) * inverse)));
        const float off = scale * q + minimum - x[k];
        error += off * off;
        out[k] = static_cast<uint8_t>(q);
    }
    return error;
}

// Asymmetric. The range is narrowed from both ends in a few steps, because one outlier less accurate can leave all
// others more so; the range with the least squared error stays.
Int4Scale quantize_int4(const float* x, int count, uint8_t* out) {
    float low = x[0], high = x[0];
    for (int k = 1; k < count; ++k) {
        low = std::fmin(low, x[k]);
        high = std::fmax(high, x[k]);
    }
    Int4Scale best{0, 0};
    float least = INFINITY;
    uint8_t trial[kInt4Group];
    for (int step = 0; step < 8; ++step) {
        const float shrink = 1.0f - 0.03f * static_cast<float>(step), middle = 0.5f * (low + high);
        const uint16_t minimum = nearest_bf16(middle + (low - middle) * shrink);
        const uint16_t scale = nearest_bf16((high - low) * shrink / 15.0f);
        const float error = try_int4(x, count, from_bf16(scale), from_bf16(minimum), trial);
        if (error < least) {
            least = error;
            best = {scale, minimum};
            std::memcpy(out, trial, count);
        }
    }
    return best;
}

void pack_f32(const Linear& w, const float* row, int lane, uint8_t* panel) {
    float* out = reinterpret_cast<float*>(panel) + lane;
    for (int k = 0; k < w.depth; ++k) out[static_cast<size_t>(k) * kPanel] = row[k];
}

void pack_bf16(const Linear& w, const float* row, int lane, uint8_t* panel) {
    uint16_t* out = reinterpret_cast<uint16_t*>(panel) + 2 * lane;
    for (int k = 0; k < w.depth; k += 2) {
        const uint16_t pair[2] = {nearest_bf16(row[k]), nearest_bf16(row[k + 1])};
        std::memcpy(out + static_cast<size_t>(k) * kPanel, pair, 4);
    }
}

size_t group_bytes(const Linear& w) {
    return w.format == Format::int8 ? static_cast<size_t>(w.group) * kPanel + 2 * kPanel
                                    : static_cast<size_t>(w.group) * kPanel / 2 + 4 * kPanel;
}

void write_int8(const Linear& w, int group, int lane, const int8_t* q, uint16_t scale, uint8_t* panel) {
    uint8_t* out = panel + group * group_bytes(w);
    for (int k = 0; k < w.group; k += 4) {
        const uint8_t four[4] = {static_cast<uint8_t>(q[k] + 128), static_cast<uint8_t>(q[k + 1] + 128),
                                 static_cast<uint8_t>(q[k + 2] + 128), static_cast<uint8_t>(q[k + 3] + 128)};
        std::memcpy(out + static_cast<size_t>(k) * kPanel + 4 * lane, four, 4);
    }
    std::memcpy(out + static_cast<size_t>(w.group) * kPanel + 2 * lane, &scale, 2);
}

void write_int4(const Linear& w, int group, int lane, const uint8_t* q, Int4Scale scale, uint8_t* panel) {
    uint8_t* out = panel + group * group_bytes(w);
    for (int k = 0; k < w.group; k += 8) {
        uint8_t four[4];
        for (int j = 0; j < 4; ++j) four[j] = static_cast<uint8_t>(q[k + j] | q[k + 4 + j] << 4);
        std::memcpy(out + static_cast<size_t>(k) * kPanel / 2 + 4 * lane, four, 4);
    }
    uint8_t* scales = out + static_cast<size_t>(w.group) * kPanel / 2;
    std::memcpy(scales + 2 * lane, &scale.scale, 2);
    std::memcpy(scales + 2 * kPanel + 2 * lane, &scale.minimum, 2);
}

void pack_ready_int8(const Linear& w, const Place& place, int lane, uint8_t* panel) {
    const int groups = w.depth / w.group;
    const int8_t* values = static_cast<const int8_t*>(place.source->values) + static_cast<size_t>(place.row) * w.columns;
    for (int g = 0; g < groups; ++g) {
        int8_t q[kInt8Group] = {};
        const int start = g * w.group, count = w.columns - start < w.group ? w.columns - start : w.group;
        std::memcpy(q, values + start, count);
        write_int8(w, g, lane, q, place.source->scales[static_cast<size_t>(place.row) * groups + g], panel);
    }
}

void pack_ready_int4(const Linear& w, const Place& place, int lane, uint8_t* panel) {
    const int groups = w.depth / w.group;
    const uint8_t* values =
        static_cast<const uint8_t*>(place.source->values) + static_cast<size_t>(place.row) * ((w.columns + 1) / 2);
    for (int g = 0; g < groups; ++g) {
        uint8_t q[kInt4Group] = {};
        for (int k = 0; k < w.group && g * w.group + k < w.columns; ++k) {
            const int column = g * w.group + k;
            q[k] = column % 2 ? values[column / 2] >> 4 : values[column / 2] & 15;
        }
        const size_t at = static_cast<size_t>(place.row) * groups + g;
        write_int4(w, g, lane, q, {place.source->scales[at], place.source->minima[at]}, panel);
    }
}

void pack_row(const Linear& w, const Place& place, int lane, uint8_t* panel, float* row) {
    if (place.source->format == Format::int8) return pack_ready_int8(w, place, lane, panel);
    if (place.source->format == Format::int4) return pack_ready_int4(w, place, lane, panel);
    read_floats(place, w.columns, w.depth, row);
    if (w.format == Format::f32) return pack_f32(w, row, lane, panel);
    if (w.format == Format::bf16) return pack_bf16(w, row, lane, panel);
    for (int g = 0; g < w.depth / w.group; ++g) {
        if (w.format == Format::int8) {
            int8_t q[kInt8Group];
            const uint16_t scale = quantize_int8(row + g * w.group, w.group, q);
            write_int8(w, g, lane, q, scale, panel);
        } else {
            uint8_t q[kInt4Group] = {};
            const int start = g * w.group, count = w.columns - start < w.group ? w.columns - start : w.group;
            const Int4Scale scale = quantize_int4(row + start, count, q);
            write_int4(w, g, lane, q, scale, panel);
        }
    }
}

size_t bytes_of_prepared(const Linear& w) {
    switch (w.format) {
        case Format::f32: return sizeof(float) * w.depth;
        case Format::bf16: return (w.rounds_x ? sizeof(uint16_t) : sizeof(float)) * w.depth;
        default: return w.depth + 8 * static_cast<size_t>(w.depth / w.group);
    }
}

size_t bytes_of_panel(const Linear& w) {
    switch (w.format) {
        case Format::f32: return sizeof(float) * kPanel * static_cast<size_t>(w.depth);
        case Format::bf16: return sizeof(uint16_t) * kPanel * static_cast<size_t>(w.depth);
        default: return group_bytes(w) * static_cast<size_t>(w.depth / w.group);
    }
}

uint16_t bf16_at(const uint8_t* p, size_t index) {
    uint16_t bits;
    std::memcpy(&bits, p + 2 * index, 2);
    return bits;
}

float weight_at(const Linear& w, const uint8_t* panel, int lane, int k) {
    if (w.format == Format::f32) return reinterpret_cast<const float*>(panel)[static_cast<size_t>(k) * kPanel + lane];
    if (w.format == Format::bf16) return from_bf16(bf16_at(panel, static_cast<size_t>(k / 2) * 2 * kPanel + 2 * lane + k % 2));
    const uint8_t* group = panel + k / w.group * group_bytes(w);
    k %= w.group;
    if (w.format == Format::int8) {
        const int q = group[k / 4 * 4 * kPanel + 4 * lane + k % 4] - 128;
        return static_cast<float>(q) * from_bf16(bf16_at(group + w.group * kPanel, lane));
    }
    const uint8_t byte = group[k / 8 * 4 * kPanel + 4 * lane + k % 4];
    const uint8_t* scales = group + w.group * kPanel / 2;
    const float q = static_cast<float>(k % 8 < 4 ? byte & 15 : byte >> 4);
    return q * from_bf16(bf16_at(scales, lane)) + from_bf16(bf16_at(scales, kPanel + lane));
}

}  // namespace

Linear linear_new(Format format, int rows, int columns, bool gated, bool bias) {
    Linear w{};
    w.format = format;
    w.rows = rows;
    w.columns = columns;
    w.group = format == Format::int8 ? kInt8Group : format == Format::int4 ? kInt4Group : 0;
    w.depth = round_up(columns, w.group ? w.group : format == Format::bf16 ? 2 : 1);
    w.panels = gated ? round_up(rows / 2, kHalf) / kHalf : round_up(rows, kPanel) / kPanel;
    w.gated = gated;
    w.panel_bytes = bytes_of_panel(w);
    linear_round_x(w, bf16_products_pay());
    w.weights = Buffer(w.panel_bytes * w.panels);
    if (bias) w.bias = Buffer(sizeof(float) * kPanel * w.panels);
    return w;
}

void linear_round_x(Linear& w, bool rounds_x) {
    w.rounds_x = rounds_x && w.format == Format::bf16;
    w.prepared_bytes = round_up(bytes_of_prepared(w), size_t{64});
}

int linear_row(const Linear& w, int panel, int row) {
    if (!w.gated) {
        const int at = panel * kPanel + row;
        return at < w.rows ? at : -1;
    }
    const int at = panel * kHalf + row % kHalf, half = w.rows / 2;
    return at >= half ? -1 : row < kHalf ? at : half + at;
}

void linear_pack(const Linear& w, const Source* sources, int panel) {
    uint8_t* out = w.weights.as<uint8_t>() + panel * w.panel_bytes;
    std::vector<float> row(w.depth);
    for (int lane = 0; lane < kPanel; ++lane) {
        const int at = linear_row(w, panel, lane);
        if (at < 0) continue;
        const Place place = find_row(sources, at);
        pack_row(w, place, lane, out, row.data());
        if (place.source->bias != nullptr) w.bias.as<float>()[panel * kPanel + lane] = place.source->bias[place.row];
    }
}

void linear_unpack(const Linear& w, int row, float* out) {
    const int half = w.rows / 2;
    const int panel = w.gated ? row % half / kHalf : row / kPanel;
    const int lane = w.gated ? row % half % kHalf + (row < half ? 0 : kHalf) : row % kPanel;
    const uint8_t* from = w.weights.as<uint8_t>() + panel * w.panel_bytes;
    for (int k = 0; k < w.columns; ++k) out[k] = weight_at(w, from, lane, k);
}

}  // namespace liuyi
