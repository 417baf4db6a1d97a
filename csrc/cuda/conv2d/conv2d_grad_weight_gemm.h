// SPDX-License-Identifier: MIT
// The weight gradient as a matrix product on tensor cores: for every group
//
//   partials[split][o, tap, c] = sum over the split's pixels m of
//                                grad_output[m, o] * input[pixel of m under the tap, c]
//
// and, where wanted, partials[split][bias of o] = sum of grad_output[m, o]. Both operands are
// channels-last, in vectors of 16 bytes; conv2d_partials.h adds up the splits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/shapes.h"
#include "cuda/common/divmod.h"
#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

struct GradWeightGemm {
  const void* grad_output;
  Strides4 grad_output_strides;  // in elements; channel is that of a group
  const void* input;
  Strides4 input_strides;  // the same
  int32_t in_height;
  int32_t in_width;
  int32_t stride_row;
  int32_t stride_column;
  int32_t padding_row;
  int32_t padding_column;
  int32_t dilation_row;
  int32_t dilation_column;
  FastDivmod image_divisor;    // by the output pixels of an image
  FastDivmod columns_divisor;  // by the output columns
  FastDivmod vectors_divisor;  // by the channel vectors of a group of the input
  FastDivmod taps_divisor;     // by the kernel columns
  int32_t pixels;              // of all images
  int32_t pixels_per_split;    // whole stages
  int32_t groups;
  int32_t out_channels;    // of a group
  int32_t out_vectors;     // channel vectors of a group of grad_output
  int32_t column_vectors;  // taps * channel vectors of a group of the input
  float* partials;
  int64_t row_stride;  // elements from one split to the next, a multiple of 2
  int64_t bias;        // where the bias starts in a row, or -1
};

// Serves a call as plan says; false when it cannot. A tile < 0 and splits < 1 are chosen.
bool plan_conv2d_grad_weight_implicit(const Conv2dGradWeight& call, int tile, int64_t splits,
                                      Conv2dPlan* plan);
cudaError_t launch_conv2d_grad_weight_implicit(const Conv2dGradWeight& call, cudaStream_t stream);

// Partial sums along `pixels`, so that `tiles` blocks become two for every multiprocessor, but none
// with fewer than a few stages of `stage_pixels`.
int64_t choose_conv2d_splits(int64_t tiles, int64_t groups, int64_t pixels, int64_t stage_pixels,
                             const Device& device);

// One per kind of arithmetic, each in a file of its own.
cudaError_t launch_conv2d_grad_weight_bfloat16(const GradWeightGemm& gemm, int tile,
                                               cudaStream_t stream);
cudaError_t launch_conv2d_grad_weight_float16(const GradWeightGemm& gemm, int tile,
                                              cudaStream_t stream);
cudaError_t launch_conv2d_grad_weight_tf32(const GradWeightGemm& gemm, int tile,
                                           cudaStream_t stream);
cudaError_t launch_conv2d_grad_weight_tf32x3(const GradWeightGemm& gemm, int tile,
                                             cudaStream_t stream);

}  // namespace fastconv::cuda
