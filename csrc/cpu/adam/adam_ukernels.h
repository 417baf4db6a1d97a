// SPDX-License-Identifier: MIT
// The Adam kernels of one ISA. Each works on `size` elements from `begin` of one tensor.
#pragma once

#include <cstdint>

#include "cpu/adam/adam.h"
#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

using AdamUpdateKernel = void (*)(const AdamTensor& tensor, int64_t begin, int64_t size,
                                  const AdamGradient& gradient);

// Bits of a variant: what a step does besides plain Adam.
inline constexpr int kAdamL2 = 1;         // adds l2 * param to the gradient
inline constexpr int kAdamMax = 2;        // keeps and uses the largest exp_avg_sq
inline constexpr int kAdamScale = 4;      // multiplies the gradient
inline constexpr int kAdamWriteBack = 8;  // stores the unscaled gradient
inline constexpr int kAdamVariantCount = 16;

struct AdamKernels {
  AdamUpdateKernel update[kAdamTypeCount][kAdamVariantCount];
  double (*sum_of_squares[kAdamTypeCount])(const void* values, int64_t size);
};

extern const AdamKernels kAdamKernelsScalar;
extern const AdamKernels kAdamKernelsAvx2;
extern const AdamKernels kAdamKernelsAvx512;

inline const AdamKernels& adam_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kAdamKernelsAvx512
         : isa == Isa::kAvx2 ? kAdamKernelsAvx2
                             : kAdamKernelsScalar;
}

}  // namespace fastconv::cpu
