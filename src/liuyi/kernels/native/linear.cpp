// Making packed matrices; the layouts are described in linear.h.

#include "linear.h"

#include <cstring>

namespace liuyi {
namespace {

constexpr int kHalf = kPanel / 2;

int round_up(int n, int step) { return (n + step - 1) / step * step; }
size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Products of bfloat16 numbers do many times the work of float32 products with AMX; vdpbf16ps does twice as much on AMD's
// cores (Zen 4 on) and no more on Intel's.
bool bf16_products_pay(InstructionSet set) {
    __builtin_cpu_init();
    return set == InstructionSet::amx || (set == InstructionSet::avx512 && __builtin_cpu_is("amd"));
}

int depth_step(InstructionSet set, Format format) {
    switch (format) {
        case Format::f32: return 1;
        case Format::bf16: return set == InstructionSet::amx ? kTileColumns : 2;
        case Format::int8: return kInt8Block;
        case Format::int4: return kInt4Group;
    }
    return 1;
}

int group_of(Format format, int depth) {
    if (format == Format::int4) return kInt4Group;
    if (format != Format::int8) return 0;
    int group = kMostInt8Group;
    while (depth % group != 0) group -= kInt8Block;
    return group;
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
        default: return linear_group_bytes(w) * static_cast<size_t>(w.depth / w.group);
    }
}

}  // namespace

Linear linear_new(InstructionSet set, Format format, int rows, int columns, bool gated, bool bias) {
    Linear w{};
    w.format = format;
    w.rows = rows;
    w.columns = columns;
    w.depth = round_up(columns, depth_step(set, format));
    w.group = group_of(format, w.depth);
    w.panels = gated ? round_up(rows / 2, kHalf) / kHalf : round_up(rows, kPanel) / kPanel;
    w.gated = gated;
    w.is_signed = set == InstructionSet::amx;
    w.panel_bytes = bytes_of_panel(w);
    linear_round_x(w, bf16_products_pay(set));
    w.weights = Buffer(w.panel_bytes * w.panels);
    if (bias) w.bias = Buffer(sizeof(float) * kPanel * w.panels);
    return w;
}

void linear_round_x(Linear& w, bool rounds_x) {
    w.rounds_x = rounds_x && w.format == Format::bf16;
    w.prepared_bytes = round_up(bytes_of_prepared(w), size_t{64});
}

size_t linear_group_bytes(const Linear& w) {
    return w.format == Format::int8 ? static_cast<size_t>(w.group) * kPanel + 2 * kPanel
                                    : static_cast<size_t>(w.group) * kPanel / 2 + 4 * kPanel;
}

int linear_row(const Linear& w, int panel, int row) {
    if (!w.gated) {
        const int at = panel * kPanel + row;
        return at < w.rows ? at : -1;
    }
    const int at = panel * kHalf + row % kHalf, half = w.rows / 2;
    return at >= half ? -1 : row < kHalf ? at : half + at;
}

}  // namespace liuyi
