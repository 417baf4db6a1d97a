// SPDX-License-Identifier: MIT
// The emulator itself for Python: options, guarded memory, what ran and what went wrong.
#include "tests/cuda_shim/emulator.h"
#include "tests/cuda_shim/entry.h"
#include "tests/cuda_shim/guarded_memory.h"

using namespace fastconv::cuda_shim;

FC_ENTRY void fastconv_shim_set_options(int schedule, int copy_at, int mma, uint64_t seed,
                                        int multiprocessors, int compute_capability,
                                        int64_t most_blocks) {
  set_options({static_cast<Schedule>(schedule), static_cast<CopyAt>(copy_at),
               static_cast<MmaMode>(mma), seed, multiprocessors, compute_capability, most_blocks});
}

FC_ENTRY void* fastconv_shim_allocate(int64_t bytes, int64_t alignment, int flush,
                                      const char* name) {
  return guarded_allocate(static_cast<size_t>(bytes), static_cast<size_t>(alignment),
                          static_cast<Flush>(flush), name);
}
FC_ENTRY bool fastconv_shim_free(void* pointer) {
  return guarded_free(pointer);
}

FC_ENTRY const char* fastconv_shim_last_error() {
  return last_error();
}
FC_ENTRY void fastconv_shim_reset_counts() {
  reset_counts();
}
FC_ENTRY const char* fastconv_shim_kernel_trace() {
  return kernel_trace().c_str();
}
// Fields of Counts in their order, seven numbers.
FC_ENTRY void fastconv_shim_counts(int64_t* values) {
  const Counts& c = counts();
  const int64_t all[] = {c.launches, c.blocks,       c.barriers,        c.mma,
                         c.ldmatrix, c.async_copies, c.checked_accesses};
  for (int i = 0; i < 7; ++i) values[i] = all[i];
}
