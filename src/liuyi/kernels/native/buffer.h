// Memory for large arrays: zero, page-aligned, in huge pages where the system has them, and real only once it is touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

namespace liuyi {

class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t bytes) : bytes_(bytes) {
        if (bytes == 0) return;
        void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        if (bytes >= size_t{2} << 20) madvise(memory, bytes, MADV_HUGEPAGE);
        memory_ = memory;
    }
    ~Buffer() {
        if (memory_ != nullptr) munmap(memory_, bytes_);
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }

    size_t bytes() const { return bytes_; }
    template <class T>
    T* as() const {
        return static_cast<T*>(memory_);
    }
    // At least this large; what was in it is lost.
    void grow(size_t bytes) {
        if (bytes > bytes_) *this = Buffer(bytes + bytes / 4);
    }

  private:
    void swap(Buffer& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(bytes_, other.bytes_);
    }

    void* memory_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace liuyi
