// A few threads that stay: a job runs on all of them at once, with cheap barriers inside it.
//
//     Threads threads(2);
//     threads.run([&](int thread) { …; threads.barrier(); …; });     // thread 0 is the caller
//
// Waiting spins for some microseconds, then offers the core to others for some milliseconds, then sleeps: a step with
// hundreds of barriers costs tens of nanoseconds each, the next step finds all threads awake, and nothing collapses when
// others use the same cores.
//
// Where there are as many processors as threads, each thread has one of its own while a job runs. The system's scheduler
// puts two of them on one otherwise, as soon as another program takes the second for a moment, and leaves them there for
// many milliseconds: all the barriers of a step then wait for each other in turn. Who moves the threads elsewhere (taskset)
// is not overruled.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace liuyi {

// A number to wait on.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void advance();                // by one, waking who sleeps
    void wait_beyond(uint32_t old);  // until it is not `old` any more

  private:
    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

class Threads {
  public:
    explicit Threads(int count);
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return count_; }

    // job(thread) on every thread; returns when all are done. Calls from several threads take turns.
    template <class Job>
    void run(const Job& job) {
        start([](const void* context, int thread) { (*static_cast<const Job*>(context))(thread); }, &job);
    }

    // Within a job: waits until every thread is here.
    void barrier();

  private:
    using Function = void (*)(const void*, int);
    void start(Function function, const void* context);
    void work(int thread);

    const int count_;
    std::vector<int> processors_;  // of each thread; -1 for any
    Function function_ = nullptr;
    const void* context_ = nullptr;
    bool stopping_ = false;
    std::mutex turn_;
    alignas(64) Signal jobs_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) Signal barriers_;
    std::vector<std::thread> workers_;
};

// A counter that threads draw numbers from until they run out.
class alignas(64) Tickets {
  public:
    void reset() { next_.store(0, std::memory_order_relaxed); }
    int next() const { return next_.load(std::memory_order_relaxed); }  // what `draw` gives if nobody draws before
    int draw() { return next_.fetch_add(1, std::memory_order_relaxed); }

  private:
    std::atomic<int> next_{0};
};

}  // namespace liuyi
