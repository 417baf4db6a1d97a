// SPDX-License-Identifier: MIT
// The loop nest that the forward pass and the input gradient share: every point (i, j) of an output
// grid gathers one input element per tap and input channel.
//
//   output[n, o, i, j] = bias[o] + sum_{c, t} w[o, c, t] *
//                        input[n, c, i * step_height + tap[t].row, j * step_width + tap[t].column]
//
// Forward: one such gather. Input gradient: one per phase of the stride, without zero insertion,
// because all inputs of a phase see the same subset of taps. Elements outside the input are zero.
//
// Pixels of the whole batch are numbered flat and cut into register tiles, so small maps waste no
// lanes. Per block of tiles the input is packed into a panel [taps * channels, pixels] that stays in
// L2 and is multiplied by all output channels; the full im2col matrix never exists.
#pragma once

#include <vector>

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/conv2d_ukernels.h"

namespace fastconv::cpu {

// Sizes are per group; `groups` of them lie side by side in the channel dimension.
struct GatherConv {
  int64_t batch;
  int64_t groups;
  int64_t in_channels;
  int64_t in_height;
  int64_t in_width;
  const float* input;
  Strides4 input_strides;

  int64_t out_channels;
  int64_t grid_height;
  int64_t grid_width;
  float* output;  // grid point (0, 0) of channel 0
  Strides4 output_strides;

  int64_t step_height;
  int64_t step_width;
  std::vector<TapOffset> taps;

  const float* weight;                // w[g, o, c, t] at g * weight_group + o * weight_out +
  int64_t weight_group;               //                  c * weight_in + weight_tap[t]
  int64_t weight_out;
  int64_t weight_in;
  std::vector<int64_t> weight_tap;
  const float* bias;  // [groups * out_channels] or nullptr
};

// `taps` is the largest number of taps of any gather that will run on the plan, `pixels` the
// largest number of grid points (batch included).
Conv2dPlan plan_gather(int64_t groups, int64_t in_channels, int64_t out_channels, int64_t taps,
                       int64_t pixels);

void run_gather(const Conv2dPlan& plan, const GatherConv& conv, float* scratch);

}  // namespace fastconv::cpu
