// SPDX-License-Identifier: MIT
// What relu needs from an ISA. Contracts as in relu.h.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

struct ReluKernels {
  void (*forward)(int64_t count, const float* input, float* output);
  void (*backward)(int64_t count, const float* grad_output, const float* output, float* grad_input);
};

extern const ReluKernels kReluKernelsScalar;
extern const ReluKernels kReluKernelsAvx2;
extern const ReluKernels kReluKernelsAvx512;

inline const ReluKernels& relu_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kReluKernelsAvx512
         : isa == Isa::kAvx2 ? kReluKernelsAvx2
                             : kReluKernelsScalar;
}

}  // namespace fastconv::cpu
