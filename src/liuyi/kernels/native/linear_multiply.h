// The functions of linear.h for one instruction set: included by linear_avx2.cpp and linear_avx512.cpp.
#pragma once

#include "linear_float.h"
#include "linear_int4.h"
#include "linear_int8.h"
#include "linear_prepare.h"
#ifdef LIUYI_HAS_TILES
#include "linear_amx.h"
#endif

namespace liuyi {
namespace LIUYI_ISA {

void multiply(const Linear& w, const void* prepared, Range tokens, Range panels, float* y, size_t stride,
              Epilogue epilogue) {
    const uint8_t* x = static_cast<const uint8_t*>(prepared);
#ifdef LIUYI_HAS_TILES
    if (multiply_with_tiles(w, x, tokens, panels, y, stride, epilogue)) return;
#endif
    switch (w.format) {
        case Format::f32: return multiply_blocks<F32Kernel>(w, x, tokens, panels, y, stride, epilogue);
        case Format::bf16:
            if (w.rounds_x) return multiply_blocks<Bf16PairKernel>(w, x, tokens, panels, y, stride, epilogue);
            return multiply_blocks<Bf16Kernel>(w, x, tokens, panels, y, stride, epilogue);
        case Format::int8: return multiply_blocks<Int8Kernel>(w, x, tokens, panels, y, stride, epilogue);
        case Format::int4: return multiply_blocks<Int4Kernel>(w, x, tokens, panels, y, stride, epilogue);
    }
}

void swiglu(const float* gate, const float* up, int count, float* out) {
    for (int i = 0; i < count; i += kWidth) {
        const int left = count - i;
        if (left >= kWidth) {
            store(out + i, mul(silu(load(gate + i)), load(up + i)));
        } else {
            store_first(out + i, mul(silu(load_first(gate + i, left)), load_first(up + i, left)), left);
        }
    }
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
