// SPDX-License-Identifier: MIT
// The one convolution kernel of this folder, in float32: the forward pass, the gradient behind an
// average (which needs z again), and the input gradient, a convolution of the output's gradient
// with the mirrored weights. Internal: called by conv_block2d_forward/backward, and by
// conv2d_direct for convolutions alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/conv_block2d/conv_block2d.h"

namespace fastconv::cuda {

struct DirectConv {
  int64_t batch;
  int64_t in_channels, in_height, in_width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t padding_height, padding_width;  // a negative one leaves out the image's first rows
  int64_t stride_height, stride_width;    // 1 for what max pooling left

  // Either the image that is convolved, or (input is nullptr) the gradient that max pooling left:
  // values of [batch, in_channels, in_height / 2, in_width / 2] at their winning taps.
  const float* input;
  Strides4 input_strides;
  const float* grad;
  const float* pooled;
  const uint8_t* taps;
  Activation grad_activation;

  const float* weight;  // element strides below; the taps of a plane are evenly spaced
  int64_t weight_out_stride;
  int64_t weight_in_stride;
  int64_t weight_tap_stride;
  bool mirrored;      // the taps of a plane in reverse order
  const float* bias;  // or nullptr

  Activation activation;
  float slope;  // of both activations
  BlockPool pool;
  float* output;            // pooled
  Strides4 output_strides;  // without pooling: of any layout; else the output is contiguous
  uint8_t* offsets;         // the winning taps, or nullptr
  // Not nullptr: the gradient of the averages, contiguous [batch, out_channels, out_height / 2,
  // out_width / 2]; what is written then is that of z, in whole windows.
  const float* mean_grad;
};

// The block's own convolution, but for where its results go.
DirectConv forward_conv(const ConvBlock2dShape& shape, const float* input,
                        const Strides4& input_strides, const float* weight, const float* bias);

cudaError_t launch_direct_conv(const DirectConv& conv, const Device& device, cudaStream_t stream);

}  // namespace fastconv::cuda
