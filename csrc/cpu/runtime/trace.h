// SPDX-License-Identifier: MIT
// Remembers which algorithm and ISA served the last call of each kernel, so that tests and
// fastconv.runtime can prove what ran, and holds the algorithm somebody wants to force. Safe to
// call from any thread; the last writer wins.
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
  kAdam,
  kConvBlock2dForward,
  kConvBlock2dBackward,
  kMlpForward,
  kMlpBackward,
  kLstmForward,
  kLstmBackward,
  kBatchNormForward,
  kBatchNormBackward,
  kReluForward,
  kReluBackward,
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

// As if no kernel had run yet.
void forget_records();

// The algorithms among which a kernel chooses, ended by nullptr; empty when there is no choice.
const char* const* kernel_algorithms(KernelId kernel);

// Makes `kernel` use one of its algorithms; nullptr gives the choice back.
void force_algorithm(KernelId kernel, const char* algorithm);
const char* forced_algorithm(KernelId kernel);

// Whether `forced` names an algorithm, and not this one.
bool is_other(const char* forced, const char* algorithm);

}  // namespace fastconv::cpu
