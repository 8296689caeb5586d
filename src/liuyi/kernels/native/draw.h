// Drawing the next token of a row of logits: bias, penalties, temperature, filters, and the draw itself, for one row by one
// thread. A row's token depends on nothing but what its Draw holds.
//
// It is what infer/sampling.py says in torch, in the same order and from the same random numbers; sums are taken in another
// order, so that where a filter's threshold or two candidates lie within rounding of each other the two may part.
#pragma once

#include <cstddef>
#include <cstdint>

namespace liuyi {

// As in kernels/draws.py.
struct Draw {
    const float* logits;      // [vocab]
    const uint32_t* allowed;  // bit t is set where token t may come; null allows all
    const int32_t* seen;      // tokens of prompt and output, each once
    const float* counts;      // how often each of them is in the output
    const int32_t* biased;    // tokens that have a bias
    const float* biases;
    uint64_t key;             // of the noise
    int32_t seen_count, biased_count;
    float repetition, presence, frequency;
    float temperature;        // 0 takes the likeliest
    int32_t top_k;            // 0 keeps all, as 1 of those below
    float top_p, min_p, typical_p;
};

// Log-probabilities of a row: of one token, and of the `top` likeliest, the best first and of equal ones the first.
struct Score {
    const float* logits;  // [vocab]
    float* logprob;
    int32_t* top_ids;     // [top]
    float* top_logprobs;
    int32_t token, top;   // top no more than the vocabulary
};

// Numbers that a thread needs: of tokens that may still come logits and ids, and two more of each.
constexpr size_t draw_numbers(int vocab) { return 4 * (static_cast<size_t>(vocab) + 64); }

namespace avx2 {
int32_t draw(const Draw& row, int vocab, float* memory);
void score(const Score& score, int vocab, float* memory);
}
namespace avx512 {
int32_t draw(const Draw& row, int vocab, float* memory);
void score(const Score& score, int vocab, float* memory);
}

}  // namespace liuyi
