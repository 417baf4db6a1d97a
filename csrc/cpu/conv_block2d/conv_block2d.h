// SPDX-License-Identifier: MIT
// Convolution + bias + activation + 2 x 2 pooling of one image at a time, forward and backward,
// float32. The full-size output of the convolution never exists: its rows live in a strip in L1
// until they are pooled, and the backward pass works on the gradients of the pooled values alone.
//
//   z = conv2d(input, weight, bias)    output = pool(activation(z))    windows 2 x 2, stride 2
//
// Max pooling keeps one byte per output for the backward pass, the number of the winning tap; an
// average behind an activation computes z again. Semantics are those of the composed operators:
// of equal values the first wins, NaN wins over every number.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/activation.h"
#include "common/shapes.h"
#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

enum class BlockPool : int { kMax, kAvg };

struct ConvBlock2dShape {
  Conv2dShape conv;  // of the convolution alone
  Activation activation;
  float negative_slope;  // of kLeakyRelu
  BlockPool pool;

  int64_t pooled_height() const { return conv.out_height / 2; }
  int64_t pooled_width() const { return conv.out_width / 2; }
  int64_t cells() const { return pooled_height() * pooled_width(); }
};

// True for the shapes that the functions below serve: groups, stride and dilation 1, kernels up to
// 7 rows, images small enough that a copy stays in L2, no negative slope below zero, and no 3 x 3
// kernels over so many channels that Winograd is faster. Looks at nothing but the sizes of one
// image and the options.
bool conv_block2d_applies(const ConvBlock2dShape& shape);

// Bytes that one image's winning taps take; zero for average pooling.
int64_t conv_block2d_offset_bytes(const ConvBlock2dShape& shape);

struct ConvBlock2dForward {
  ConvBlock2dShape shape;
  const float* input;
  Strides4 input_strides;
  const float* weight;  // contiguous [out_channels, in_channels, kh, kw]
  const float* bias;    // [out_channels] or nullptr
  float* output;        // contiguous [N, out_channels, pooled_height, pooled_width]
  uint8_t* offsets;     // [N, conv_block2d_offset_bytes] or nullptr: the call records none
};

struct ConvBlock2dBackward {
  ConvBlock2dShape shape;
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
};

// What a call needs; made by plan_*, valid for calls of the same shape and pointers.
struct ConvBlock2dPlan {
  Isa isa;
  int64_t slots;           // pieces that run in parallel
  int64_t slot_floats;     // memory of each
  int64_t scratch_floats;  // memory the run needs, uninitialised
};

// Preconditions: conv_block2d_applies(call.shape), at least one image.
ConvBlock2dPlan plan_conv_block2d_forward(const ConvBlock2dForward& call);
void conv_block2d_forward(const ConvBlock2dPlan& plan, const ConvBlock2dForward& call,
                          float* scratch);

ConvBlock2dPlan plan_conv_block2d_backward(const ConvBlock2dBackward& call);
void conv_block2d_backward(const ConvBlock2dPlan& plan, const ConvBlock2dBackward& call,
                           float* scratch);

}  // namespace fastconv::cpu
