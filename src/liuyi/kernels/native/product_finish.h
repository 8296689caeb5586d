// What becomes of a product's blocks of sums: each is rounded to bfloat16 and goes where a Sink puts it, some of its lines at a
// time, while the next block is multiplied. The core has time for it then, and the memory that lines go to is asked for a
// block ahead. A Sink has
//
//     Block block(int row, int column);                        // where the block that begins there goes: so many `lines`
//     void ask(const Block&, int line);                        // for the memory of a line, of so many as are `asked`
//     void put(const Block&, int line, const float* sums);     // of 32 × 32
#pragma once

#include <algorithm>

#include "swiglu.h"
#include "tiles.h"

namespace liuyi {
namespace LIUYI_ISA {

constexpr int kBlockSize = kBlock * kBlock;

LIUYI_INLINE __m512i rounded(const float* sums) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(sums + 16), load(sums)));
}
// Past the caches, which need not read first what is written.
LIUYI_INLINE void stream(uint16_t* to, __m512i line) { _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line); }
LIUYI_INLINE bool begins_line(const uint16_t* values) { return reinterpret_cast<uintptr_t>(values) % 64 == 0; }

template <class Sink>
class Finish {
  public:
    explicit Finish(Sink& sink) : sink_(sink) {}

    // The block of the product that begins there is multiplied next.
    LIUYI_INLINE void expect(int row, int column) {
        expected_ = sink_.block(row, column);
        asked_ = 0;
    }
    // Its sums are there, and all lines of the one before are written.
    LIUYI_INLINE void begin() {
        now_ = expected_;
        next_ = 0;
    }
    float* sums() { return sums_; }

    LIUYI_INLINE void some(int lines) {
        for (int i = 0; i < lines && asked_ < expected_.asked; ++i, ++asked_) sink_.ask(expected_, asked_);
        for (const int end = std::min(next_ + lines, now_.lines); next_ < end; ++next_) sink_.put(now_, next_, sums_);
    }

  private:
    alignas(64) float sums_[kBlockSize];
    Sink& sink_;
    typename Sink::Block now_{}, expected_{};
    int asked_ = 0, next_ = 0;
};

// Where a product goes, [rows, columns] or turned about its diagonal; streamed where lines of a block are lines of the cache.
struct Result {
    uint16_t* values;
    int64_t stride;
    int rows, columns;
    bool turned, streamed;
};

class ResultSink {
  public:
    struct Block {
        uint16_t* to;
        int numbers, lines, asked;
        bool streamed;
    };
    explicit ResultSink(const Result& out) : out_(out) {}

    LIUYI_INLINE Block block(int row, int column) const {
        const int high = std::min(kBlock, out_.rows - row), wide = std::min(kBlock, out_.columns - column);
        uint16_t* to = out_.values + (out_.turned ? column * out_.stride + row : row * out_.stride + column);
        const int lines = out_.turned ? wide : high, numbers = out_.turned ? high : wide;
        const bool streamed = out_.streamed && numbers == kBlock;
        return {to, numbers, lines, streamed ? 0 : lines, streamed};
    }
    LIUYI_INLINE void ask(const Block& block, int line) const { __builtin_prefetch(block.to + line * out_.stride, 1); }
    LIUYI_INLINE void put(const Block& block, int line, const float* sums) {
        if (line == 0 && out_.turned) turn(sums);
        const __m512i numbers = out_.turned ? _mm512_load_si512(turned_ + line * kBlock) : rounded(sums + line * kBlock);
        uint16_t* to = block.to + line * out_.stride;
        if (block.streamed) stream(to, numbers);
        else _mm512_mask_storeu_epi16(to, block.numbers < kBlock ? (1u << block.numbers) - 1 : ~0u, numbers);
    }

  private:
    void turn(const float* sums) {
        alignas(64) uint16_t lines[kBlockSize];
        for (int i = 0; i < kBlock; ++i) _mm512_store_si512(lines + i * kBlock, rounded(sums + i * kBlock));
        pack_pairs<true>(lines, kBlock, turned_);
    }

    const Result out_;
    alignas(64) uint16_t turned_[kBlockSize];
};

// A product whose columns are gate and up by turns, a block of each: they go side by side, and silu(gate) · up besides.
class SwigluSink {
  public:
    struct Block {
        uint16_t *to, *activated;  // Of a block of gate, which waits for that of up, nothing is activated.
        int lines, asked;
    };
    SwigluSink(uint16_t* gate_up, uint16_t* activated, int rows, int width)
        : gate_up_(gate_up), activated_(activated), rows_(rows), width_(width), streamed_(begins_line(gate_up)) {}

    LIUYI_INLINE Block block(int row, int column) const {
        const bool is_up = column / kBlock % 2 != 0;
        const int at = column / (2 * kBlock) * kBlock, lines = std::min(kBlock, rows_ - row);
        uint16_t* to = gate_up_ + row * 2 * width_ + at;
        if (is_up) return {to + width_, activated_ + row * width_ + at, lines, lines};
        return {to, nullptr, lines, 0};
    }
    LIUYI_INLINE void ask(const Block& block, int line) const { __builtin_prefetch(block.activated + line * width_, 1); }
    LIUYI_INLINE void put(const Block& block, int line, const float* sums) {
        const __m512i numbers = rounded(sums + line * kBlock);
        uint16_t *to = block.to + line * 2 * width_, *gate = gate_ + line * kBlock;
        if (streamed_) stream(to, numbers);
        else _mm512_storeu_si512(to, numbers);
        if (block.activated == nullptr) {
            _mm512_store_si512(gate, numbers);
            return;
        }
        alignas(64) uint16_t up[kBlock];
        _mm512_store_si512(up, numbers);
        for (int i = 0; i < kBlock; i += kWidth) {
            store_bf16(block.activated + line * width_ + i, swiglu(load_bf16(gate + i), load_bf16(up + i)));
        }
    }

  private:
    uint16_t *const gate_up_, *const activated_;
    const int rows_;
    const int64_t width_;
    const bool streamed_;
    alignas(64) uint16_t gate_[kBlockSize];
};

}  // namespace LIUYI_ISA
}  // namespace liuyi
