// SPDX-License-Identifier: MIT
// The convolution on CUDA tensors, for other operators' CUDA files.
#pragma once

#include "bindings/ops.h"
#include "common/activation.h"

namespace fastconv::bindings {

// activation(conv2d(input, weight, bias)) without a graph, the activation applied to the sums
// before they are stored. Checks its arguments as conv2d. float64 has its slope rounded to float32.
Tensor conv2d_activated_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             const Conv2dOptions& options, Activation activation,
                             double negative_slope);

}  // namespace fastconv::bindings
