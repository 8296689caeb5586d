#include "buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <new>

namespace liuyi {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20, kReserved = size_t{64} << 20;
constexpr size_t kLeastShared = size_t{128} << 10;  // Smaller arrays have pages of their own.

size_t whole(size_t bytes, size_t pages) { return (bytes + pages - 1) / pages * pages; }

char* map(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(memory);
}

void unmap(char* begin, char* end) {
    if (begin < end) munmap(begin, end - begin);
}

// Addresses that begin with a huge page, handed out from front to back. What was handed out is unmapped piece by piece.
class Reserved {
  public:
    char* take(size_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (bytes > static_cast<size_t>(end_ - next_)) renew(whole(bytes > kReserved ? bytes : kReserved, kHugePage));
        char* piece = next_;
        next_ += bytes;
        return piece;
    }

  private:
    void renew(size_t bytes) {
        char* memory = map(bytes + kHugePage);
        char* begin = memory + whole(reinterpret_cast<uintptr_t>(memory), kHugePage) - reinterpret_cast<uintptr_t>(memory);
        unmap(memory, begin);
        unmap(begin + bytes, memory + bytes + kHugePage);
        madvise(begin, bytes, MADV_HUGEPAGE);
        unmap(next_, end_);
        next_ = begin;
        end_ = begin + bytes;
    }

    std::mutex mutex_;
    char* next_ = nullptr;
    char* end_ = nullptr;
};

Reserved reserved;

}  // namespace

void* Buffer::take(size_t bytes) {
    bytes = whole(bytes, kPage);
    return bytes < kLeastShared ? map(bytes) : reserved.take(bytes);
}

void Buffer::give_back(void* memory, size_t bytes) { munmap(memory, whole(bytes, kPage)); }

}  // namespace liuyi
