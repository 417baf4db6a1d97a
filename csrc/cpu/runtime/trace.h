// SPDX-License-Identifier: MIT
// Remembers which algorithm and ISA served the last call of each kernel, so that tests and
// fastconv.runtime can prove what ran. Safe to call from any thread; the last writer wins.
#pragma once

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

enum class KernelId : int {
  kConv2dForward,
  kConv2dGradInput,
  kConv2dGradWeight,
  kMaxPool2dForward,
  kMaxPool2dBackward,
  kAvgPool2dForward,
  kAvgPool2dBackward,
  kCount,
};

struct KernelRecord {
  const char* algorithm;  // static string, or nullptr when the kernel has not run yet
  Isa isa;
};

const char* kernel_name(KernelId kernel);

// `algorithm` must be a string literal.
void record_kernel(KernelId kernel, const char* algorithm, Isa isa);

KernelRecord last_record(KernelId kernel);

// The record of the most recent kernel of any kind.
KernelRecord last_record();

}  // namespace fastconv::cpu
