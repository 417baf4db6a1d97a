// SPDX-License-Identifier: MIT
#include "cpu/peak/peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cpu/peak/peak_ukernels.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

const PeakKernel& peak_kernel(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return kPeakKernelAvx512;
    case Isa::kAvx2:
      return kPeakKernelAvx2;
    case Isa::kScalar:
      break;
  }
  return kPeakKernelScalar;
}

// Seconds that all threads together need for `repeats` each.
double seconds_of(const PeakKernel& kernel, int64_t threads, int64_t repeats) {
  constexpr float kFactor = 0.5f;  // the chains stay near 2: no overflow, no subnormal numbers
  std::vector<float> results(static_cast<size_t>(threads));
  const auto start = std::chrono::steady_clock::now();
  parallel_for(threads, [&](int64_t t) {
    results[static_cast<size_t>(t)] = kernel.run(repeats, kFactor, 1.0f);
  });
  const auto stop = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(stop - start).count();
}

}  // namespace

double measure_fma_peak(Isa isa) {
  constexpr double kRoundSeconds = 3e-3;
  constexpr int kRounds = 6;
  const PeakKernel& kernel = peak_kernel(isa);
  const int64_t threads = num_threads();
  int64_t repeats = 1024;
  double seconds = seconds_of(kernel, threads, repeats);
  while (seconds < kRoundSeconds) {
    repeats *= 2;
    seconds = seconds_of(kernel, threads, repeats);
  }
  for (int round = 1; round < kRounds; ++round)
    seconds = std::min(seconds, seconds_of(kernel, threads, repeats));
  return 1e-9 * static_cast<double>(threads * repeats * kernel.flops) / seconds;
}

}  // namespace fastconv::cpu
