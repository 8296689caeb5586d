#include "cpu.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace liuyi {
namespace {

bool may_use_amx() {
#ifdef LIUYI_AMX
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    static const bool may = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                            __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
    return may;
#else
    return false;
#endif
}

}  // namespace

InstructionSet best_instruction_set(InstructionSet most) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    if (most >= InstructionSet::amx && avx512 && may_use_amx()) return InstructionSet::amx;
    if (most >= InstructionSet::avx512 && avx512) return InstructionSet::avx512;
    return most >= InstructionSet::avx2 && avx2 ? InstructionSet::avx2 : InstructionSet::none;
}

const char* name(InstructionSet set) {
    switch (set) {
        case InstructionSet::amx: return "amx";
        case InstructionSet::avx512: return "avx512";
        case InstructionSet::avx2: return "avx2";
        default: return "none";
    }
}

}  // namespace liuyi
