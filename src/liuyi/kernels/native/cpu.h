// Which instruction set this processor can run.
#pragma once

namespace liuyi {

enum class InstructionSet { none, avx2, avx512 };

// The best one that both the processor and the system support, no better than `most`.
InstructionSet best_instruction_set(InstructionSet most);

const char* name(InstructionSet set);

}  // namespace liuyi
