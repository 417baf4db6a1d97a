// SPDX-License-Identifier: MIT
// The loop itself, a template over the number of chains, instantiated by peak_ukernels_<isa>.cpp
// after it has included its simd_<isa>.h.
#pragma once

#include <cstdint>

#include "cpu/peak/peak_ukernels.h"

namespace {

using fastconv::cpu::PeakKernel;

// Each chain waits for itself; enough of them keep every multiply-add unit busy (latency x units).
template <int Chains>
float peak_loop(int64_t repeats, float factor, float addend) {
  typename Simd::Reg acc[Chains];
  // Different starts, or equal chains would be computed once.
#pragma GCC unroll 32
  for (int i = 0; i < Chains; ++i) acc[i] = Simd::set1(addend * static_cast<float>(i));
  const auto x = Simd::set1(factor);
  const auto y = Simd::set1(addend);
  for (int64_t n = 0; n < repeats; ++n) {
#pragma GCC unroll 32
    for (int i = 0; i < Chains; ++i) acc[i] = Simd::fma(acc[i], x, y);
  }
#pragma GCC unroll 32
  for (int i = 1; i < Chains; ++i) acc[0] = Simd::add(acc[0], acc[i]);
  float lanes[Simd::kLanes];
  Simd::store(lanes, acc[0]);
  return lanes[0];
}

template <int Chains>
constexpr PeakKernel peak_kernel() {
  return {int64_t{2} * Simd::kLanes * Chains, &peak_loop<Chains>};
}

}  // namespace
