// SPDX-License-Identifier: MIT
// The one parser and checker of conv2d's arguments, for every device and for forward and backward.
#pragma once

#include "bindings/ops.h"
#include "common/shapes.h"

namespace fastconv::bindings {

// Throws ValueError (c10::ValueError) or RuntimeError with a message "conv2d: expected ..., got
// ...". `input` is 4-D [N, C, H, W]. `bias` may be undefined.
Conv2dShape parse_conv2d_args(const Tensor& input, const Tensor& weight, const Tensor& bias,
                              const Conv2dOptions& options);

// Throws unless `input` has 3 or 4 dimensions.
void check_conv2d_input_rank(const Tensor& input);

// forward(input) on a batch: a 3-D input becomes a batch of one and its result 3-D again.
template <typename Forward>
Tensor conv2d_of_rank(const Tensor& input, const Forward& forward) {
  check_conv2d_input_rank(input);
  if (input.dim() == 4) return forward(input);
  return forward(input.unsqueeze(0)).squeeze(0);
}

// Likewise backward(grad_output, input), whose first result is the input's gradient or undefined.
template <typename Backward>
Tensor3 conv2d_backward_of_rank(const Tensor& grad_output, const Tensor& input,
                                const Backward& backward) {
  check_conv2d_input_rank(input);
  if (input.dim() == 4) return backward(grad_output, input);
  auto [grad_input, grad_weight, grad_bias] =
      backward(grad_output.unsqueeze(0), input.unsqueeze(0));
  if (grad_input.defined()) grad_input = grad_input.squeeze(0);
  return {grad_input, grad_weight, grad_bias};
}

// Throws unless `grad_output` has the shape of the output and the input's dtype.
void check_conv2d_grad_output(const Tensor& grad_output, const Tensor& input,
                              const Conv2dShape& shape);

// The layout torch gives a convolution's result: channels_last when input or weight suggest it.
at::MemoryFormat conv2d_memory_format(const Tensor& input, const Tensor& weight);

}  // namespace fastconv::bindings
