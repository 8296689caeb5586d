// Which instruction set this processor can run.
#pragma once

namespace liuyi {

// Each has all of those before it.
enum class InstructionSet { none, avx2, avx512, amx };

// The best one that this library was compiled for: setup.py leaves out what a compiler does not know.
#if defined(LIUYI_AMX)
constexpr InstructionSet kCompiled = InstructionSet::amx;
#elif defined(LIUYI_AVX512)
constexpr InstructionSet kCompiled = InstructionSet::avx512;
#else
constexpr InstructionSet kCompiled = InstructionSet::avx2;
#endif

// The best one that the library, the processor and the system support, no better than `most`. For AMX the system is asked
// for leave to use it, which holds for the whole process.
InstructionSet best_instruction_set(InstructionSet most);

const char* name(InstructionSet set);

}  // namespace liuyi

// The function of that name that is compiled for an instruction set; LIUYI_VECTORS_FOR where the matrix unit has no part in it.
#ifdef LIUYI_AVX512
#define LIUYI_VECTORS_FOR(set, function) ((set) >= liuyi::InstructionSet::avx512 ? liuyi::avx512::function : liuyi::avx2::function)
#else
#define LIUYI_VECTORS_FOR(set, function) (static_cast<void>(set), liuyi::avx2::function)
#endif
#ifdef LIUYI_AMX
#define LIUYI_FOR(set, function) \
    ((set) == liuyi::InstructionSet::amx ? liuyi::amx::function : LIUYI_VECTORS_FOR(set, function))
#else
#define LIUYI_FOR(set, function) LIUYI_VECTORS_FOR(set, function)
#endif
