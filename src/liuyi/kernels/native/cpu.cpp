#include "cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace liuyi {
namespace {

// What the processor says of itself. Compilers have names for most of it, but not all the same ones.
struct Leaf {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // zeros where the processor does not know the leaf

    explicit Leaf(unsigned number) { __get_cpuid_count(number, 0, &eax, &ebx, &ecx, &edx); }
};

bool has_f16c() { return (Leaf(1).ecx >> 29 & 1) != 0; }

#ifdef LIUYI_AVX512
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#else
bool has_avx512() { return false; }
#endif

#ifdef LIUYI_AMX
bool may_use_amx() {
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, which systems that know no tiles refuse
    static const bool may = (Leaf(7).edx & kAll) == kAll && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
    return may;
}
#else
bool may_use_amx() { return false; }
#endif

}  // namespace

InstructionSet best_instruction_set(InstructionSet most) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && has_f16c();
    const bool avx512 = avx2 && has_avx512();
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
