// silu(gate) · up of a vector of each, and its gradient, as training takes them: of bfloat16 numbers, in float32.
#pragma once

#include "simd.h"

namespace liuyi {
namespace LIUYI_ISA {

LIUYI_INLINE Floats sigmoid(Floats x) {
    const Floats grown = inverse_sigmoid(x);
#if defined(__AVX512F__)
    const Floats nearly = _mm512_rcp14_ps(grown);  // and one step of Newton's, in place of a division
    return mul(nearly, sub(all(2.0f), mul(grown, nearly)));
#else
    return div(all(1.0f), grown);
#endif
}

LIUYI_INLINE Floats swiglu(Floats gate, Floats up) { return mul(mul(gate, sigmoid(gate)), up); }

// The gradients of gate and up, and what came out of them.
struct SwigluGradient {
    Floats gate, up, activated;
};
LIUYI_INLINE SwigluGradient swiglu_gradient(Floats gate, Floats up, Floats grad) {
    const Floats part = sigmoid(gate), silu = mul(gate, part);
    const Floats slope = fma(silu, sub(all(1.0f), part), part);
    return {mul(mul(grad, up), slope), mul(grad, silu), mul(silu, up)};
}

}  // namespace LIUYI_ISA
}  // namespace liuyi
