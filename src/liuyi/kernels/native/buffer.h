// Memory for large arrays: zero, page-aligned, in huge pages where the system has them, and real only once it is touched.
//
// Arrays of one model lie side by side: most matrices are smaller than a huge page or begin within one, and reading them
// from small pages costs decoding a tenth of its time.
#pragma once

#include <cstddef>
#include <utility>

namespace liuyi {

class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t bytes) : memory_(bytes == 0 ? nullptr : take(bytes)), bytes_(bytes) {}
    ~Buffer() {
        if (memory_ != nullptr) give_back(memory_, bytes_);
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
    static void* take(size_t bytes);  // Throws std::bad_alloc.
    static void give_back(void* memory, size_t bytes);

    void swap(Buffer& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(bytes_, other.bytes_);
    }

    void* memory_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace liuyi
