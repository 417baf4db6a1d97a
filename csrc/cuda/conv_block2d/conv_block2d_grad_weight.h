// SPDX-License-Identifier: MIT
// The gradients of weight and bias. Internal: called by conv_block2d_backward.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/conv_block2d/conv_block2d.h"

namespace fastconv::cuda {

struct BlockGradWeight {
  Conv2dShape conv;
  const float* input;
  Strides4 input_strides;
  // The gradient of the convolution's output: either what max pooling left of it, one value per
  // 2 x 2 window at its winning tap, behind the activation; or (taps is nullptr) values of all
  // pixels, [batch, out_channels, grad_height, grad_width].
  const float* grad;
  const float* pooled;
  const uint8_t* taps;
  Activation activation;
  float slope;
  bool multiplies_zeros;  // zeros of the gradient may meet NaN and infinities
  int64_t grad_height;
  int64_t grad_width;
  float* grad_weight;  // or nullptr
  float* grad_bias;    // or nullptr
  float* partials;     // block_grad_weight_partials floats
};

int64_t block_grad_weight_partials(const BlockGradWeight& call, const Device& device);
cudaError_t launch_block_grad_weight(const BlockGradWeight& call, const Device& device,
                                     cudaStream_t stream);

}  // namespace fastconv::cuda
