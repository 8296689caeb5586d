// The caller's own threads, borrowed for one kernel.
//
// Training alternates between PyTorch's products and these kernels hundreds of times a step. PyTorch's threads spin for a
// while after each product, so threads of our own would fight with them for the cores: kernels run on PyTorch's, through
// the entry point of its OpenMP library. Work is cut into parts that do not depend on the number of threads, and whoever
// is free takes the next: results are the same however many come.
#pragma once

#include <atomic>
#include <new>

namespace liuyi {

// GOMP_parallel: runs function(data) on so many threads, the caller among them, and waits for all.
using Parallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

struct Team {
    Parallel parallel;
    int threads;
};

// Throws std::bad_alloc, after all threads have ended, if a part did: an exception must not leave another's thread.
template <class Body>
void for_each_part(const Team& team, int parts, const Body& body) {
    if (team.threads <= 1 || parts <= 1) {
        for (int part = 0; part < parts; ++part) body(part);
        return;
    }
    struct Job {
        const Body& body;
        const int parts;
        std::atomic<int> next{0};
        std::atomic<bool> failed{false};
    } job{body, parts};
    team.parallel(
        [](void* data) {
            Job& mine = *static_cast<Job*>(data);
            try {
                for (int part = mine.next.fetch_add(1); part < mine.parts; part = mine.next.fetch_add(1)) mine.body(part);
            } catch (const std::bad_alloc&) {
                mine.failed = true;
            }
        },
        &job, static_cast<unsigned>(team.threads < parts ? team.threads : parts), 0);
    if (job.failed) throw std::bad_alloc();
}

}  // namespace liuyi
