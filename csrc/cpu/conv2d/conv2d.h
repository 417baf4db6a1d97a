// SPDX-License-Identifier: MIT
// conv2d on raw pointers: forward and the two gradients, float32 by register tiles on the active
// ISA, any type by the plain loops of conv2d_reference.h.
//
//   output[n, o, i, j] = bias[o] + sum_{c, r, s} weight[o, c, r, s] *
//                        input[n, c, i * stride - padding + r * dilation, j * ... + s * dilation]
//
// Every function is asked first for a plan, which says how much scratch memory it wants, and is
// then run on memory that the caller owns. Tensors are float32; input, output and their gradients
// have any strides, weights are contiguous [out_channels, in_channels / groups, kh, kw], or
// channels_last where the plan takes that: [out_channels, kh, kw, in_channels / groups] in memory.
// No pointer may alias another; outputs are written completely, never read first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/shapes.h"
#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// What a call needs; made by plan_*, valid for calls of the same shape and strides.
struct Conv2dPlan {
  Isa isa;
  int64_t threads;         // threads the call may use
  int64_t scratch_floats;  // memory the run needs, uninitialised
  const char* forced;      // the algorithm somebody forced (cpu/runtime/trace.h), or nullptr
  bool possible;           // false: the forced one cannot serve the call, which must not be run
  bool takes_channels_last = false;  // the weights, or their gradient
};

struct Conv2dForward {
  Conv2dShape shape;
  const float* input;
  Strides4 input_strides;
  const float* weight;
  const float* bias;  // [out_channels] or nullptr
  float* output;
  Strides4 output_strides;
  bool weight_channels_last = false;
};

struct Conv2dGradInput {
  Conv2dShape shape;
  const float* grad_output;
  Strides4 grad_output_strides;
  const float* weight;
  float* grad_input;
  Strides4 grad_input_strides;
  bool weight_channels_last = false;
};

struct Conv2dGradWeight {
  Conv2dShape shape;
  const float* grad_output;
  Strides4 grad_output_strides;
  const float* input;
  Strides4 input_strides;
  float* grad_weight;  // as a weight
  float* grad_bias;    // [out_channels] or nullptr
  bool weight_channels_last = false;
};

// Plans depend on the shape and the strides of a call; its pointers are not read.
Conv2dPlan plan_conv2d_forward(const Conv2dForward& call);
void conv2d_forward(const Conv2dPlan& plan, const Conv2dForward& call, float* scratch);

Conv2dPlan plan_conv2d_grad_input(const Conv2dGradInput& call);
void conv2d_grad_input(const Conv2dPlan& plan, const Conv2dGradInput& call, float* scratch);

Conv2dPlan plan_conv2d_grad_weight(const Conv2dGradWeight& call);
void conv2d_grad_weight(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch);

}  // namespace fastconv::cpu
