// SPDX-License-Identifier: MIT
// The convolution on CUDA tensors, for other operators' CUDA files.
#pragma once

#include "bindings/ops.h"
#include "common/activation.h"
#include "cuda/conv2d/conv2d.h"

namespace fastconv::bindings {

// What is done to the sums before they are stored. float64 has its slope rounded to float32.
struct Conv2dEpilogue {
  Activation activation;
  double negative_slope;
  cuda::Conv2dPool pool;
};

// pool(activation(conv2d(input, weight, bias))) without a graph. Checks its arguments as conv2d. An
// undefined tensor where the kernels cannot pool this call (cuda::conv2d_pools).
Tensor conv2d_fused_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const Conv2dOptions& options, const Conv2dEpilogue& epilogue);

}  // namespace fastconv::bindings
