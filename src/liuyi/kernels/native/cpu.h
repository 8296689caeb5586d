// Which instruction set this processor can run.
#pragma once

namespace liuyi {

// Each has all of those before it.
enum class InstructionSet { none, avx2, avx512, amx };

// The best one that both the processor and the system support, no better than `most`. For AMX the system is asked for
// leave to use it, which holds for the whole process.
InstructionSet best_instruction_set(InstructionSet most);

const char* name(InstructionSet set);

}  // namespace liuyi

// The function of that name that is compiled for an instruction set. Compilers before gcc 11 and clang 11 know no AMX:
// then setup.py leaves it out.
#ifdef LIUYI_AMX
#define LIUYI_FOR(set, function)                           \
    ((set) == liuyi::InstructionSet::amx      ? liuyi::amx::function    \
     : (set) == liuyi::InstructionSet::avx512 ? liuyi::avx512::function \
                                              : liuyi::avx2::function)
#else
#define LIUYI_FOR(set, function) \
    ((set) == liuyi::InstructionSet::avx512 ? liuyi::avx512::function : liuyi::avx2::function)
#endif
