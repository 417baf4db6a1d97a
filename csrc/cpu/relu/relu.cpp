// SPDX-License-Identifier: MIT
#include "cpu/relu/relu.h"

#include <algorithm>

#include "common/checked.h"
#include "cpu/relu/relu_ukernels.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kLine = 16;  // floats of a cache line: threads share none

// Calls body(begin, end) for ranges of [0, count) on as many threads as `streams` arrays deserve.
template <class Body>
void for_ranges(int64_t count, int64_t streams, const Body& body) {
  const int64_t lines = ceil_div(count, kLine);
  const int64_t bytes = streams * count * static_cast<int64_t>(sizeof(float));
  const int64_t slots = std::min(lines, worthwhile_threads(0, bytes));
  parallel_for(slots, [&](int64_t slot) {
    body(lines * slot / slots * kLine, std::min(count, lines * (slot + 1) / slots * kLine));
  });
}

}  // namespace

template <>
void relu_forward(const ReluForward<double>& call) {
  record_kernel(KernelId::kReluForward, "reference", Isa::kScalar);
  for (int64_t i = 0; i < call.count; ++i)
    call.output[i] = call.input[i] <= 0 ? 0.0 : call.input[i];
}

template <>
void relu_backward(const ReluBackward<double>& call) {
  record_kernel(KernelId::kReluBackward, "reference", Isa::kScalar);
  for (int64_t i = 0; i < call.count; ++i)
    call.grad_input[i] = call.output[i] <= 0 ? 0.0 : call.grad_output[i];
}

template <>
void relu_forward(const ReluForward<float>& call) {
  const Isa isa = active_isa();
  record_kernel(KernelId::kReluForward, "vectors", isa);
  for_ranges(call.count, 2, [&](int64_t begin, int64_t end) {
    relu_kernels(isa).forward(end - begin, call.input + begin, call.output + begin);
  });
}

template <>
void relu_backward(const ReluBackward<float>& call) {
  const Isa isa = active_isa();
  record_kernel(KernelId::kReluBackward, "vectors", isa);
  for_ranges(call.count, 3, [&](int64_t begin, int64_t end) {
    relu_kernels(isa).backward(end - begin, call.grad_output + begin, call.output + begin,
                               call.grad_input + begin);
  });
}

}  // namespace fastconv::cpu
