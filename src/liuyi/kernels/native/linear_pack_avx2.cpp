// Filling packed matrices, quantising what is not quantised yet, and reading them again.
//
// Compiled for AVX2, which every processor that runs these kernels has: a model is packed in well under a second, and
// into the same numbers everywhere. `model/quantize.py` has the same arithmetic in torch.

#include <cmath>
#include <cstring>
#include <vector>

#include "linear.h"
#include "linear_rotate.h"
#include "simd.h"

namespace liuyi {
namespace {

using namespace avx2;

constexpr int kHalf = kPanel / 2;

struct Place {
    const Source* source;
    int row;
};

Place find_row(const Source* sources, int row) {
    while (row >= sources->rows) row -= (sources++)->rows;
    return {sources, row};
}

// The columns of one row in float32, and zeros up to depth.
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

// The smallest bfloat16 that is no smaller; x >= 0.
uint16_t bf16_above(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0xffff) >> 16);
}

// Symmetric, of a rotated group: the largest of the group is ±127, or a little less by the rounding of the scale, which
// is returned.
uint16_t quantize_int8(const float* x, int group, int8_t* out) {
    Floats peak = zero();
    for (int k = 0; k < group; k += kWidth) peak = max(peak, abs(load(x + k)));
    const uint16_t scale = bf16_above(largest(peak) / 127.0f);
    const Floats step = all(scale != 0 ? from_bf16(scale) : 1.0f);
    for (int k = 0; k < group; k += kWidth) store_bytes(out + k, to_ints(div(load(x + k), step)));
    return scale;
}

struct Int4 {
    int8_t numbers[kInt4Group];
    uint16_t scale, minimum;
};

// x as scale·number + minimum; returns the squared error of the columns counted.
float try_int4(const float* x, const float* counted, Int4& out) {
    const float step = from_bf16(out.scale);
    const Floats scale = all(step), minimum = all(from_bf16(out.minimum)), inverse = all(step > 0.0f ? 1.0f / step : 0.0f);
    Floats error = zero();
    for (int k = 0; k < kInt4Group; k += kWidth) {
        const Floats exact = load(x + k);
        const Floats near = min(max(nearest(mul(sub(exact, minimum), inverse)), zero()), all(15.0f));
        const Floats off = mul(sub(add(mul(scale, near), minimum), exact), load(counted + k));
        error = add(error, mul(off, off));
        store_bytes(out.numbers + k, to_ints(near));
    }
    return sum(error);
}

// Asymmetric. The range is narrowed from both ends in a few steps, because one outlier less accurate can leave all
// others more so; the range with the least squared error stays. Only the first `count` of the 32 columns exist.
Int4 quantize_int4(const float* x, int count) {
    float row[kInt4Group], counted[kInt4Group];
    for (int k = 0; k < kInt4Group; ++k) {
        row[k] = x[k < count ? k : count - 1];
        counted[k] = k < count ? 1.0f : 0.0f;
    }
    Floats lows = load(row), highs = lows;
    for (int k = kWidth; k < kInt4Group; k += kWidth) {
        lows = min(lows, load(row + k));
        highs = max(highs, load(row + k));
    }
    const float low = -largest(sub(zero(), lows)), high = largest(highs), middle = 0.5f * (low + high);
    Int4 best{}, trial;
    float least = INFINITY;
    for (int step = 0; step < 8; ++step) {
        const float shrink = 1.0f - 0.03f * static_cast<float>(step);
        trial.minimum = to_bf16(middle + (low - middle) * shrink);
        trial.scale = to_bf16((high - low) * shrink / 15.0f);
        const float error = try_int4(row, counted, trial);
        if (error < least) {
            least = error;
            best = trial;
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
        const uint16_t pair[2] = {to_bf16(row[k]), to_bf16(row[k + 1])};
        std::memcpy(out + static_cast<size_t>(k) * kPanel, pair, 4);
    }
}

void write_int8(const Linear& w, int group, int lane, const int8_t* q, uint16_t scale, uint8_t* panel) {
    uint8_t* out = panel + group * linear_group_bytes(w);
    for (int k = 0; k < w.group; k += 4) {
        uint32_t four;
        std::memcpy(&four, q + k, 4);
        if (!w.is_signed) four ^= 0x80808080u;  // + 128
        std::memcpy(out + static_cast<size_t>(k) * kPanel + 4 * lane, &four, 4);
    }
    std::memcpy(out + static_cast<size_t>(w.group) * kPanel + 2 * lane, &scale, 2);
}

void write_int4(const Linear& w, int group, int lane, const Int4& q, uint8_t* panel) {
    uint8_t* out = panel + group * linear_group_bytes(w);
    for (int k = 0; k < w.group; k += 8) {
        uint8_t four[4];
        for (int j = 0; j < 4; ++j) four[j] = static_cast<uint8_t>(q.numbers[k + j] | q.numbers[k + 4 + j] << 4);
        std::memcpy(out + static_cast<size_t>(k) * kPanel / 2 + 4 * lane, four, 4);
    }
    uint8_t* scales = out + static_cast<size_t>(w.group) * kPanel / 2;
    std::memcpy(scales + 2 * lane, &q.scale, 2);
    std::memcpy(scales + 2 * kPanel + 2 * lane, &q.minimum, 2);
}

void pack_ready_int8(const Linear& w, const Place& place, int lane, uint8_t* panel) {
    const int groups = w.depth / w.group;
    const int8_t* values = static_cast<const int8_t*>(place.source->values) + static_cast<size_t>(place.row) * w.depth;
    for (int g = 0; g < groups; ++g) {
        write_int8(w, g, lane, values + g * w.group, place.source->scales[static_cast<size_t>(place.row) * groups + g], panel);
    }
}

void pack_ready_int4(const Linear& w, const Place& place, int lane, uint8_t* panel) {
    const int groups = w.depth / w.group;
    const uint8_t* values =
        static_cast<const uint8_t*>(place.source->values) + static_cast<size_t>(place.row) * ((w.columns + 1) / 2);
    for (int g = 0; g < groups; ++g) {
        Int4 q{};
        for (int k = 0; k < w.group && g * w.group + k < w.columns; ++k) {
            const int column = g * w.group + k;
            q.numbers[k] = static_cast<int8_t>(column % 2 ? values[column / 2] >> 4 : values[column / 2] & 15);
        }
        const size_t at = static_cast<size_t>(place.row) * groups + g;
        q.scale = place.source->scales[at];
        q.minimum = place.source->minima[at];
        write_int4(w, g, lane, q, panel);
    }
}

void pack_row(const Linear& w, const Place& place, int lane, uint8_t* panel, float* row) {
    if (place.source->format == Format::int8) return pack_ready_int8(w, place, lane, panel);
    if (place.source->format == Format::int4) return pack_ready_int4(w, place, lane, panel);
    read_floats(place, w.columns, w.depth, row);
    if (w.format == Format::f32) return pack_f32(w, row, lane, panel);
    if (w.format == Format::bf16) return pack_bf16(w, row, lane, panel);
    for (int g = 0; g < w.depth / w.group; ++g) {
        const int start = g * w.group;
        if (w.format == Format::int8) {
            float rotated[kMostInt8Group];
            int8_t q[kMostInt8Group];
            rotate_whole_group(row + start, w.group, rotated);
            const uint16_t scale = quantize_int8(rotated, w.group, q);
            write_int8(w, g, lane, q, scale, panel);
        } else {
            const int left = w.columns - start;
            write_int4(w, g, lane, quantize_int4(row + start, left < w.group ? left : w.group), panel);
        }
    }
}

uint16_t bf16_at(const uint8_t* p, size_t index) {
    uint16_t bits;
    std::memcpy(&bits, p + 2 * index, 2);
    return bits;
}

// A weight as it is stored: of int8, in its rotated group.
float weight_at(const Linear& w, const uint8_t* panel, int lane, int k) {
    if (w.format == Format::f32) return reinterpret_cast<const float*>(panel)[static_cast<size_t>(k) * kPanel + lane];
    if (w.format == Format::bf16) return from_bf16(bf16_at(panel, static_cast<size_t>(k / 2) * 2 * kPanel + 2 * lane + k % 2));
    const uint8_t* group = panel + k / w.group * linear_group_bytes(w);
    k %= w.group;
    if (w.format == Format::int8) {
        const uint8_t byte = group[k / 4 * 4 * kPanel + 4 * lane + k % 4];
        const int q = w.is_signed ? static_cast<int8_t>(byte) : byte - 128;
        return static_cast<float>(q) * from_bf16(bf16_at(group + w.group * kPanel, lane));
    }
    const uint8_t byte = group[k / 8 * 4 * kPanel + 4 * lane + k % 4];
    const uint8_t* scales = group + w.group * kPanel / 2;
    const float q = static_cast<float>(k % 8 < 4 ? byte & 15 : byte >> 4);
    return q * from_bf16(bf16_at(scales, lane)) + from_bf16(bf16_at(scales, kPanel + lane));
}

}  // namespace

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
    if (w.format != Format::int8) {
        for (int k = 0; k < w.columns; ++k) out[k] = weight_at(w, from, lane, k);
        return;
    }
    for (int start = 0; start < w.columns; start += w.group) {
        float group[kMostInt8Group];
        for (int k = 0; k < w.group; ++k) group[k] = weight_at(w, from, lane, start + k);
        rotate_whole_group(group, w.group, group);
        const int left = w.columns - start;
        std::memcpy(out + start, group, sizeof(float) * (left < w.group ? left : w.group));
    }
}

}  // namespace liuyi
