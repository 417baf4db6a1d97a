// SPDX-License-Identifier: MIT
#include "bindings/outputs.h"

#include <ATen/ops/empty.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace fastconv::bindings {
namespace {

// Smaller blocks come from the allocator's warm heap.
constexpr int64_t kAdviseBytes = int64_t{4} << 20;

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  // Advice only: a kernel without transparent huge pages refuses, and nothing is lost.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                        at::MemoryFormat format) {
  at::Tensor output = at::empty(sizes, options, format);
  const int64_t bytes = static_cast<int64_t>(output.nbytes());
  if (bytes >= kAdviseBytes && output.is_cpu()) advise_huge_pages(output.mutable_data_ptr(), bytes);
  return output;
}

}  // namespace fastconv::bindings
