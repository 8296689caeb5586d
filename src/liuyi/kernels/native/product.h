// Products of bfloat16 matrices on the matrix unit (AMX), with float32 sums: what a training step multiplies.
//
// Operands are packed while they are multiplied, so that weights and activations may lie either way and need no copies of
// their own. How a product is cut into parts changes no bits: sums run over the inner dimension in an order of its own.
#pragma once

#include <cstdint>

#include "team.h"

namespace liuyi {

// Numbers of a row, or of a column where they lie `across`, are neighbours; `stride` leads to the next one.
struct Operand {
    const uint16_t* values;
    int64_t stride;
    bool across;
};

// out [rows, columns] = left [rows, inner] · right [inner, columns]; `out_stride` from row to row. Needs AMX.
void product(const Team&, const Operand& left, const Operand& right, int rows, int columns, int inner, uint16_t* out,
             int64_t out_stride);

// The same with SwiGLU made of its sums, for a width that is a multiple of 32. All that is written has rows side by side.
//
// gate_up [rows, 2 · width] = left · right, which are gate and up; activated [rows, width] = silu(gate) · up.
void product_swiglu(const Team&, const Operand& left, const Operand& right, int rows, int width, int inner, uint16_t* gate_up,
                    uint16_t* activated);

}  // namespace liuyi
