#include "threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#include <climits>
#include <initializer_list>

namespace liuyi {
namespace {

// Some 20 µs at 2–4 GHz: longer than the unevenness of a phase. From then on the core is offered to others.
constexpr uint64_t kSpinCycles = 60'000;
// Some 2 ms: longer than what lies between two steps. To wake from sleep takes longer than many a phase, all the more
// where the core is halted and the machine is a virtual one.
constexpr uint64_t kYieldCycles = 6'000'000;

long futex(const std::atomic<uint32_t>* word, int operation, uint32_t value) {
    return syscall(SYS_futex, reinterpret_cast<const uint32_t*>(word), operation | FUTEX_PRIVATE_FLAG, value, nullptr,
                   nullptr, 0);
}

// The processors that the calling thread may run on; none if the system does not say.
std::vector<int> allowed_processors() {
    std::vector<int> processors;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return processors;
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
        if (CPU_ISSET(processor, &set)) processors.push_back(processor);
    }
    return processors;
}

cpu_set_t only(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    return set;
}

// Where it fails, the thread runs as before.
bool run_on(const cpu_set_t& set) { return sched_setaffinity(0, sizeof set, &set) == 0; }

// Keeps the calling thread on one processor as long as it lives; no processor is below 0. Whoever moves the thread, before
// or meanwhile, has the last word.
class Bound {
  public:
    explicit Bound(int processor) {
        if (processor < 0 || sched_getaffinity(0, sizeof before_, &before_) != 0) return;
        if (!CPU_ISSET(processor, &before_)) return;
        here_ = only(processor);
        bound_ = run_on(here_);
    }
    ~Bound() {
        cpu_set_t now;
        if (bound_ && sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &here_)) run_on(before_);
    }
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;

  private:
    cpu_set_t before_, here_;
    bool bound_ = false;
};

// Threads that begin while this lives leave the program's signals to its own threads, which may wait for them; not those
// that tell of a fault of their own.
class WithoutSignals {
  public:
    WithoutSignals() {
        sigset_t all;
        sigfillset(&all);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) sigdelset(&all, fault);
        pthread_sigmask(SIG_BLOCK, &all, &before_);
    }
    ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    WithoutSignals(const WithoutSignals&) = delete;
    WithoutSignals& operator=(const WithoutSignals&) = delete;

  private:
    sigset_t before_;
};

}  // namespace

void Signal::advance() {
    value_.fetch_add(1);
    if (sleepers_.load() > 0) futex(&value_, FUTEX_WAKE, INT_MAX);
}

void Signal::wait_beyond(uint32_t old) {
    const uint64_t begin = __rdtsc();
    while (value() == old) {
        const uint64_t waited = __rdtsc() - begin;
        if (waited < kSpinCycles) {
            _mm_pause();
            continue;
        }
        if (waited < kYieldCycles) {
            sched_yield();
            continue;
        }
        sleepers_.fetch_add(1);
        futex(&value_, FUTEX_WAIT, old);  // returns at once if the value has moved on
        sleepers_.fetch_sub(1);
    }
}

Threads::Threads(int count) : count_(count), processors_(allowed_processors()) {
    if (processors_.size() != static_cast<size_t>(count) || count == 1) processors_.assign(count, -1);
    const WithoutSignals inherited;
    try {
        for (int thread = 1; thread < count; ++thread) workers_.emplace_back([this, thread] { work(thread); });
    } catch (...) {
        stopping_ = true;
        jobs_.advance();
        for (std::thread& worker : workers_) worker.join();
        throw;
    }
}

Threads::~Threads() {
    stopping_ = true;
    jobs_.advance();
    for (std::thread& worker : workers_) worker.join();
}

void Threads::start(Function function, const void* context) {
    const std::lock_guard<std::mutex> turn(turn_);
    const Bound bound(processors_[0]);
    function_ = function;
    context_ = context;
    jobs_.advance();
    function(context, 0);
    barrier();
}

void Threads::work(int thread) {
    if (processors_[thread] >= 0) run_on(only(processors_[thread]));
    for (uint32_t seen = 0;; ++seen) {
        jobs_.wait_beyond(seen);
        if (stopping_) return;
        function_(context_, thread);
        barrier();
    }
}

void Threads::barrier() {
    if (count_ == 1) return;
    const uint32_t round = barriers_.value();
    if (arrived_.fetch_add(1) == count_ - 1) {
        arrived_.store(0);
        barriers_.advance();
    } else {
        barriers_.wait_beyond(round);
    }
}

}  // namespace liuyi
