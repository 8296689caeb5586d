#include "cpu.h"

namespace liuyi {

InstructionSet best_instruction_set(InstructionSet most) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    if (avx512 && most == InstructionSet::avx512) return InstructionSet::avx512;
    return avx2 && most != InstructionSet::none ? InstructionSet::avx2 : InstructionSet::none;
}

const char* name(InstructionSet set) {
    switch (set) {
        case InstructionSet::avx512: return "avx512";
        case InstructionSet::avx2: return "avx2";
        default: return "none";
    }
}

}  // namespace liuyi
