// SPDX-License-Identifier: MIT
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

ThreadBackend installed_backend{nullptr, nullptr};

// One core does about 100 multiply-adds and moves about 10 bytes per nanosecond on the machines
// this was measured on; a parallel region costs 2-5 us while the pool's workers still spin.
constexpr int64_t kSerialMultiplyAdds = 750'000;
constexpr int64_t kSerialBytes = 150'000;

}  // namespace

void set_thread_backend(const ThreadBackend& backend) {
  installed_backend = backend;
}

int64_t num_threads() {
  return installed_backend.num_threads == nullptr ? 1 : installed_backend.num_threads();
}

void run_tasks(int64_t tasks, void* context, void (*body)(void* context, int64_t task)) {
  if (installed_backend.run == nullptr) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task);
    return;
  }
  installed_backend.run(tasks, context, body);
}

int64_t worthwhile_threads(int64_t multiply_adds, int64_t bytes) {
  if (multiply_adds < kSerialMultiplyAdds && bytes < kSerialBytes) return 1;
  return num_threads();
}

}  // namespace fastconv::cpu
