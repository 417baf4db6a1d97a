// SPDX-License-Identifier: MIT
#include "bindings/thread_pool.h"

#include <ATen/Parallel.h>

#include "cpu/runtime/parallel.h"

namespace fastconv::bindings {
namespace {

int64_t torch_num_threads() {
  return at::in_parallel_region() ? 1 : at::get_num_threads();
}

void run_on_torch_threads(int64_t tasks, void* context, void (*body)(void*, int64_t)) {
  at::parallel_for(0, tasks, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) body(context, task);
  });
}

}  // namespace

void install_torch_thread_pool() {
  cpu::set_thread_backend({&torch_num_threads, &run_on_torch_threads});
}

}  // namespace fastconv::bindings
