// SPDX-License-Identifier: MIT
// Convolution + bias + activation + pooling on a GPU in one kernel, forward and backward, float32,
// for layers of few channels, where tensor cores would idle and the number of kernels decides.
//
//   z = conv2d(input, weight, bias)   output = pool(activation(z))   windows 2 x 2, stride 2
//
// With max pooling the full-size z never reaches memory: the forward pass keeps the pooled values
// and one byte per window, the number of the winning tap, and the backward pass reads only those.
// An average behind an activation computes z again. Semantics are those of the composed operators:
// of equal values the first wins, NaN wins over every number.
//
// A launch only enqueues kernels: it allocates nothing, waits for nothing, can be captured in a
// graph, and gives the same bits on every run on the same kind of GPU. Outputs are written
// completely and never read. Without images it does nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/activation.h"
#include "common/shapes.h"
#include "cuda/common/block_pool.h"
#include "cuda/common/device.h"

namespace fastconv::cuda {

struct ConvBlock2dShape {
  Conv2dShape conv;  // of the convolution alone
  Activation activation;
  float negative_slope;  // of kLeakyRelu
  BlockPool pool;

  int64_t pooled_height() const {
    return pool == BlockPool::kNone ? conv.out_height : conv.out_height / 2;
  }
  int64_t pooled_width() const {
    return pool == BlockPool::kNone ? conv.out_width : conv.out_width / 2;
  }
  int64_t cells() const { return pooled_height() * pooled_width(); }
};

// True for the shapes that the functions below serve, and serve better than the composed operators
// by their counts of loads and launches: groups, stride and dilation 1, kernels up to 7 x 7, few
// input channels, no negative slope below zero. Looks at nothing but the sizes of one image.
bool conv_block2d_applies(const ConvBlock2dShape& shape);

// The same but for the input gradient, whose kernel has no step: without max pooling, strides up to
// 4, as in the first layers of networks.
bool conv_block2d_applies_but_grad_input(const ConvBlock2dShape& shape);

// Bytes that one image's winning taps take; zero but for max pooling.
int64_t conv_block2d_offset_bytes(const ConvBlock2dShape& shape);

struct ConvBlock2dForward {
  ConvBlock2dShape shape;
  Device device;
  const float* input;
  Strides4 input_strides;
  const float* weight;  // contiguous [out_channels, in_channels, kh, kw]
  const float* bias;    // [out_channels] or nullptr
  float* output;        // contiguous [N, out_channels, pooled_height, pooled_width]
  uint8_t* offsets;     // [N, conv_block2d_offset_bytes] or nullptr: the call records none
};

struct ConvBlock2dBackward {
  ConvBlock2dShape shape;
  Device device;
  const float* grad_output;  // contiguous, as the output
  const float* output;
  const uint8_t* offsets;  // what the forward pass recorded; max pooling only
  const float* input;
  Strides4 input_strides;
  const float* weight;
  const float* bias;
  float* grad_input;   // contiguous [N, in_channels, H, W] or nullptr
  float* grad_weight;  // contiguous, as the weight, or nullptr
  float* grad_bias;    // [out_channels] or nullptr
  void* workspace;     // conv_block2d_backward_workspace_bytes, aligned to 256 bytes
};

// Precondition of the launches: conv_block2d_applies(call.shape), or without grad_input
// conv_block2d_applies_but_grad_input.
cudaError_t launch_conv_block2d_forward(const ConvBlock2dForward& call, cudaStream_t stream);

int64_t conv_block2d_backward_workspace_bytes(const ConvBlock2dBackward& call);
cudaError_t launch_conv_block2d_backward(const ConvBlock2dBackward& call, cudaStream_t stream);

}  // namespace fastconv::cuda
