// SPDX-License-Identifier: MIT
// The pooling kernels of one ISA. Each works on a range of rows and writes them completely, so that
// callers may cut a call anywhere. Rows are numbered flat: over (image, channel, row) where columns
// are contiguous, over (image, row) where channels are.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d.h"
#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

struct RowRange {
  int64_t begin;
  int64_t end;
};

enum class PoolKernel : int { k2x2s2, k3x3s2, k3x3s1, kGeneral, kChannelsLast, kCount };

inline constexpr int kPoolKernelCount = static_cast<int>(PoolKernel::kCount);

// The gradient of an average whose windows all divide by the same number.
struct AvgGradUniform {
  Pool2dShape shape;
  float divisor;
  const float* grad_output;
  Strides4 grad_output_strides;
  float* grad_input;
  Strides4 grad_input_strides;
  bool stream;
  int64_t first_element;
};

// Forward kernels take rows of the output, backward kernels rows of the input.
struct Pool2dKernels {
  void (*max_forward[kPoolKernelCount])(const MaxPool2dForward<float>&, RowRange);
  void (*max_backward[kPoolKernelCount])(const MaxPool2dBackward<float>&, RowRange);
  void (*avg_forward[kPoolKernelCount])(const AvgPool2dForward<float>&, RowRange);
  void (*avg_backward[kPoolKernelCount])(const AvgGradUniform&, RowRange);
  // bfloat16 to float32 and back, rounding to the nearest, ties to even.
  void (*widen)(const uint16_t* source, int64_t count, float* target);
  void (*narrow)(const float* source, int64_t count, uint16_t* target);
  // Copies past the caches. What the calling thread wrote past them, other threads may read after
  // its fence().
  void (*stream)(const float* source, int64_t count, float* target);
  void (*fence)();
};

extern const Pool2dKernels kPool2dKernelsScalar;
extern const Pool2dKernels kPool2dKernelsAvx2;
extern const Pool2dKernels kPool2dKernelsAvx512;

inline const Pool2dKernels& pool2d_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kPool2dKernelsAvx512
         : isa == Isa::kAvx2 ? kPool2dKernelsAvx2
                             : kPool2dKernelsScalar;
}

}  // namespace fastconv::cpu
