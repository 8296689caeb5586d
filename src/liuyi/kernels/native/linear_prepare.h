// Turning a row of x into what the kernels of a format read. Included once per instruction set.
//   float32   [depth]
//   bfloat16  [depth]
//   int8      [depth] numbers of the rotated groups (linear_rotate.h), then a float32 scale for each group, then an
//             int32 for each group: what its integer sum starts from, because the weights are stored with 128 added
//             (linear_dot.h)
//   int4      [depth] numbers, then a float32 scale for each group, then for each group the sum of its scaled numbers,
//             which the weights' minimum is multiplied with
#pragma once

#include <algorithm>

#include "linear.h"
#include "linear_dot.h"
#include "linear_rotate.h"
#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

// columns first..first+kWidth of x, with zeros beyond `columns`.
LIUYI_INLINE Floats load_columns(const float* x, int first, int columns) {
    const int left = columns - first;
    if (left >= kWidth) return load(x + first);
    return left > 0 ? load_first(x + first, left) : zero();
}

LIUYI_INLINE void prepare_f32(const Linear& w, const float* x, float* out) {
    std::memcpy(out, x, sizeof(float) * w.columns);
    std::fill(out + w.columns, out + w.depth, 0.0f);
}

LIUYI_INLINE void prepare_bf16(const Linear& w, const float* x, uint16_t* out) {
    for (int k = 0; k < w.columns; ++k) out[k] = to_bf16(x[k]);
    for (int k = w.columns; k < w.depth; ++k) out[k] = 0;
}

// One group to int8: returns its scale, the largest magnitude / 127, and the sum of the numbers.
LIUYI_INLINE float quantize_group(const float* x, int columns, int group, int8_t* out, int32_t& total) {
    Floats peak = zero();
    for (int k = 0; k < group; k += kWidth) peak = max(peak, abs(load_columns(x, k, columns)));
    const float highest = largest(peak);
    const Floats inverse = all(highest > 1e-30f ? 127.0f / highest : 0.0f);
    Ints sums = all(0);
    for (int k = 0; k < group; k += kWidth) {
        const Ints numbers = to_ints(mul(load_columns(x, k, columns), inverse));
        store_bytes(out + k, numbers);
        sums = add(sums, numbers);
    }
    total = sum(sums);
    return highest / 127.0f;
}

LIUYI_INLINE void prepare_int8(const Linear& w, const float* x, uint8_t* out) {
    const int groups = w.depth / w.group;
    float* scales = reinterpret_cast<float*>(out + w.depth);
    int32_t* starts = reinterpret_cast<int32_t*>(scales + groups);
    alignas(64) float rotated[kMostInt8Group];
    for (int g = 0; g < groups; ++g) {
        const int start = g * w.group, left = w.columns - start;
        rotate_group(x + start, left < w.group ? left : w.group, w.group, rotated);
        int32_t total;
        scales[g] = quantize_group(rotated, w.group, w.group, reinterpret_cast<int8_t*>(out) + start, total);
        starts[g] = kWeightOffset * total;
    }
}

LIUYI_INLINE void prepare_int4(const Linear& w, const float* x, uint8_t* out) {
    const int groups = w.depth / kInt4Group;
    float* scales = reinterpret_cast<float*>(out + w.depth);
    for (int g = 0; g < groups; ++g) {
        int32_t total;
        int8_t* numbers = reinterpret_cast<int8_t*>(out) + g * kInt4Group;
        const int left = w.columns - g * kInt4Group;
        scales[g] = quantize_group(x + g * kInt4Group, left < kInt4Group ? left : kInt4Group, kInt4Group, numbers, total);
        scales[groups + g] = scales[g] * static_cast<float>(total);
    }
}

void prepare(const Linear& w, const float* x, void* out) {
    switch (w.format) {
        case Format::f32: return prepare_f32(w, x, static_cast<float*>(out));
        case Format::bf16:
            if (w.rounds_x) return prepare_bf16(w, x, static_cast<uint16_t*>(out));
            return prepare_f32(w, x, static_cast<float*>(out));
        case Format::int8: return prepare_int8(w, x, static_cast<uint8_t*>(out));
        case Format::int4: return prepare_int4(w, x, static_cast<uint8_t*>(out));
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
