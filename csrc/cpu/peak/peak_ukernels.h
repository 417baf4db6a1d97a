// SPDX-License-Identifier: MIT
// The loops that the peak_ukernels_<isa>.cpp files define. Only peak.cpp reads them.
#pragma once

#include <cstdint>

namespace fastconv::cpu {

struct PeakKernel {
  int64_t flops;  // of one repeat
  // Runs the loop `repeats` times; the result depends on every step, so that none can be left out.
  float (*run)(int64_t repeats, float factor, float addend);
};

extern const PeakKernel kPeakKernelScalar;
extern const PeakKernel kPeakKernelAvx2;
extern const PeakKernel kPeakKernelAvx512;

}  // namespace fastconv::cpu
