// SPDX-License-Identifier: MIT
// relu, written once over Simd; instantiated by relu_ukernels_<isa>.cpp. Internal linkage
// throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/relu/relu_ukernels.h"

namespace {

using fastconv::cpu::ReluKernels;

constexpr int64_t kLanes = Simd::kLanes;

// max returns its second operand for NaN, which relu keeps.
void forward(int64_t count, const float* input, float* output) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    Simd::store(output + i, Simd::max(Simd::zero(), Simd::load(input + i)));
  const auto rest = Simd::mask_first(count - i);
  const auto x = Simd::load_masked(input + i, rest);
  Simd::store_masked(output + i, Simd::max(Simd::zero(), x), rest);
}

inline Simd::Reg passed(Simd::Reg grad, Simd::Reg output) {
  return Simd::select(Simd::positive_or_nan(output), grad, Simd::zero());
}

void backward(int64_t count, const float* grad_output, const float* output, float* grad_input) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    Simd::store(grad_input + i, passed(Simd::load(grad_output + i), Simd::load(output + i)));
  const auto rest = Simd::mask_first(count - i);
  const auto grad = Simd::load_masked(grad_output + i, rest);
  const auto y = Simd::load_masked(output + i, rest);
  Simd::store_masked(grad_input + i, passed(grad, y), rest);
}

constexpr ReluKernels kReluKernels = {&forward, &backward};

}  // namespace
