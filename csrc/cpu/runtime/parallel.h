// SPDX-License-Identifier: MIT
// The threading seam. Kernels call parallel_for; who runs the pieces is decided by whoever embeds
// the library: the torch bindings install torch's own pool, the C++ tests a std::thread backend.
// Without a backend everything runs on the calling thread.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastconv::cpu {

struct ThreadBackend {
  // Threads a parallel region may use, from the calling thread's point of view (1 inside a region).
  int64_t (*num_threads)();
  // Calls body(context, task) once for every task in [0, tasks), from any threads, and waits.
  void (*run)(int64_t tasks, void* context, void (*body)(void* context, int64_t task));
};

// Not thread-safe: call once, before kernels run.
void set_thread_backend(const ThreadBackend& backend);

int64_t num_threads();

void run_tasks(int64_t tasks, void* context, void (*body)(void* context, int64_t task));

// Calls body(task) for every task in [0, tasks). One task runs on the calling thread, without a
// parallel region. Tasks are meant to be few and large: at most a few per thread.
template <class Body>
void parallel_for(int64_t tasks, Body&& body) {
  using Function = std::remove_reference_t<Body>;
  if (tasks == 1) {
    body(int64_t{0});
    return;
  }
  run_tasks(tasks, const_cast<void*>(static_cast<const void*>(&body)),
            [](void* context, int64_t task) { (*static_cast<Function*>(context))(task); });
}

// Threads worth waking for `multiply_adds` of arithmetic and `bytes` of memory traffic: 1 when the
// work takes less than about 15 us on one core, else num_threads().
int64_t worthwhile_threads(int64_t multiply_adds, int64_t bytes);

}  // namespace fastconv::cpu
