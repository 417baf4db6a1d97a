// SPDX-License-Identifier: MIT
// Depthwise convolution (one input and one output channel per group), per instruction set.
// Bound by loads: every multiply-add needs one, so nothing is packed or copied.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

inline constexpr int64_t kMaxDepthwiseTaps = 49;

// The taps of one plane: input row i * row_step + rows[r], column j * column_step + columns[q].
// Elements outside the input are zero.
struct DepthwiseTaps {
  int64_t row_count;
  int64_t rows[kMaxDepthwiseTaps];
  int64_t column_count;
  int64_t columns[kMaxDepthwiseTaps];
  int64_t row_step;
  int64_t column_step;
};

// One channel of one image, columns contiguous.
struct DepthwisePlane {
  const float* input;  // [in_height, in_row pitch]
  int64_t in_height;
  int64_t in_width;
  int64_t in_row;
  const float* zeros;  // [in_width] zeros: stands for the rows outside the input
  float* output;  // [out_height, out_row pitch]; the gradient of it, read, in add_plane_products
  int64_t out_height;
  int64_t out_width;
  int64_t out_row;
};

// One image with the channels contiguous; weights and sums are [taps, channels].
struct DepthwiseImage {
  int64_t channels;
  const float* input;
  int64_t in_height;
  int64_t in_width;
  int64_t in_row;
  int64_t in_column;
  float* output;
  int64_t out_height;
  int64_t out_width;
  int64_t out_row;
  int64_t out_column;
};

struct DepthwiseKernels {
  // output = bias + sum of taps; weights [row_count * column_count]. column_step is 1 or 2.
  void (*run_plane)(const DepthwiseTaps& taps, const DepthwisePlane& plane, const float* weights,
                    float bias);
  // sums[tap][lane] += input * output, sums[taps][lane] += output, `lanes` floats each. Kernels of
  // 3 x 3, 5 x 5 or n x 7 only; column_step is 1 or 2.
  void (*add_plane_products)(const DepthwiseTaps& taps, const DepthwisePlane& plane, float* sums);
  // target[2 * j] = even[j], target[2 * j + 1] = odd[j] for j < pairs.
  void (*interleave)(const float* even, const float* odd, int64_t pairs, float* target);
  // As run_plane for all channels; bias [channels] or nullptr. Any column_step.
  void (*run_image)(const DepthwiseTaps& taps, const DepthwiseImage& image, const float* weights,
                    const float* bias);
  // sums[tap][channel] += input * output, sums[taps][channel] += output.
  void (*add_image_products)(const DepthwiseTaps& taps, const DepthwiseImage& image, float* sums);
};

extern const DepthwiseKernels kDepthwiseKernelsScalar;
extern const DepthwiseKernels kDepthwiseKernelsAvx2;
extern const DepthwiseKernels kDepthwiseKernelsAvx512;

inline const DepthwiseKernels& depthwise_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kDepthwiseKernelsAvx512
         : isa == Isa::kAvx2 ? kDepthwiseKernelsAvx2
                             : kDepthwiseKernelsScalar;
}

}  // namespace fastconv::cpu
