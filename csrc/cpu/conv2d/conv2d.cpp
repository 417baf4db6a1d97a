// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d.h"

#include <algorithm>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_gather.h"
#include "cpu/conv2d/conv2d_phases.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

constexpr const char* kDepthwise = "depthwise";

// Clears the whole input gradient: some inputs are reached by no tap. Strided stores of zeros
// between the others would touch every cache line twice.
void fill_zero(const Conv2dGradInput& call, int64_t threads) {
  const Conv2dShape& s = call.shape;
  const Strides4& gi = call.grad_input_strides;
  const bool by_pixel = gi.channel == 1;
  const int64_t lines = by_pixel ? s.in_pixels() : s.in_channels * s.in_height;
  const int64_t slots = std::min(threads, s.batch);
  parallel_for(slots, [&](int64_t slot) {
    for (int64_t n = s.batch * slot / slots; n < s.batch * (slot + 1) / slots; ++n) {
      float* image = call.grad_input + n * gi.batch;
      for (int64_t l = 0; l < lines; ++l) {
        const int64_t width = by_pixel ? s.in_width : s.in_height;
        float* line = image + l / width * (by_pixel ? gi.row : gi.channel) +
                      l % width * (by_pixel ? gi.column : gi.row);
        const int64_t step = by_pixel ? 1 : gi.column;
        const int64_t count = by_pixel ? s.in_channels : s.in_width;
        for (int64_t i = 0; i < count; ++i) line[i * step] = 0.0f;
      }
    }
  });
}

GatherConv forward_gather(const Conv2dForward& call, const char* forced) {
  const Conv2dShape& s = call.shape;
  GatherConv conv{};
  conv.forced = forced;
  conv.batch = s.batch;
  conv.groups = s.groups;
  conv.in_channels = s.group_in_channels();
  conv.in_height = s.in_height;
  conv.in_width = s.in_width;
  conv.input = call.input;
  conv.input_strides = call.input_strides;
  conv.out_channels = s.group_out_channels();
  conv.grid_height = s.out_height;
  conv.grid_width = s.out_width;
  conv.output = call.output;
  conv.output_strides = call.output_strides;
  conv.step_height = s.stride_height;
  conv.step_width = s.stride_width;
  conv.weight = call.weight;
  conv.weight_group = s.group_out_channels() * s.group_in_channels() * s.taps();
  conv.weight_out = s.group_in_channels() * s.taps();
  conv.weight_in = call.weight_channels_last ? 1 : s.taps();
  conv.weight_tap = call.weight_channels_last ? s.group_in_channels() : 1;
  conv.weight_taps = s.taps();
  conv.bias = call.bias;
  for (int64_t r = 0; r < s.kernel_height; ++r) {
    conv.tap_rows.push_back(r * s.dilation_height - s.padding_height);
    conv.weight_rows.push_back(r * s.kernel_width);
  }
  for (int64_t q = 0; q < s.kernel_width; ++q) {
    conv.tap_columns.push_back(q * s.dilation_width - s.padding_width);
    conv.weight_columns.push_back(q);
  }
  return conv;
}

// The gather that computes the inputs of one stride phase; without taps when none reaches it.
GatherConv phase_gather(const Conv2dGradInput& call, const char* forced, int64_t phase_row,
                        int64_t phase_column) {
  const Conv2dShape& s = call.shape;
  const Strides4& gi = call.grad_input_strides;
  const Phase rows = input_phase(phase_row, s.stride_height, s.in_height);
  const Phase columns = input_phase(phase_column, s.stride_width, s.in_width);
  GatherConv conv{};
  conv.forced = forced;
  conv.batch = s.batch;
  conv.groups = s.groups;
  conv.in_channels = s.group_out_channels();
  conv.in_height = s.out_height;
  conv.in_width = s.out_width;
  conv.input = call.grad_output;
  conv.input_strides = call.grad_output_strides;
  conv.out_channels = s.group_in_channels();
  conv.grid_height = rows.count;
  conv.grid_width = columns.count;
  conv.output = call.grad_input + rows.first * gi.row + columns.first * gi.column;
  conv.output_strides = {gi.batch, gi.channel, gi.row * s.stride_height,
                         gi.column * s.stride_width};
  conv.step_height = 1;
  conv.step_width = 1;
  conv.weight = call.weight;
  conv.weight_group = s.group_out_channels() * s.group_in_channels() * s.taps();
  conv.weight_out = call.weight_channels_last ? 1 : s.taps();
  conv.weight_in = s.group_in_channels() * s.taps();
  conv.weight_tap = call.weight_channels_last ? s.group_in_channels() : 1;
  conv.weight_taps = s.taps();
  for (const PhaseTap& r : phase_taps(rows.first, s.stride_height, s.padding_height,
                                      s.dilation_height, s.kernel_height)) {
    conv.tap_rows.push_back(r.offset);
    conv.weight_rows.push_back(r.kernel_index * s.kernel_width);
  }
  for (const PhaseTap& q : phase_taps(columns.first, s.stride_width, s.padding_width,
                                      s.dilation_width, s.kernel_width)) {
    conv.tap_columns.push_back(q.offset);
    conv.weight_columns.push_back(q.kernel_index);
  }
  return conv;
}

template <typename Call>
bool runs_depthwise(const Conv2dPlan& plan, const Call& call) {
  return !is_other(plan.forced, kDepthwise) && depthwise_applies(call);
}

Conv2dPlan start_plan(const Conv2dShape& shape, KernelId kernel) {
  return {active_isa(), worthwhile_threads(shape.multiply_adds(), 0), 0, forced_algorithm(kernel),
          true};
}

// Calls visit(conv) for every stride phase that holds inputs.
template <typename Visit>
void for_each_phase(const Conv2dGradInput& call, const char* forced, const Visit& visit) {
  const Conv2dShape& s = call.shape;
  for (int64_t row = 0; row < phase_count(s.stride_height, s.in_height); ++row)
    for (int64_t column = 0; column < phase_count(s.stride_width, s.in_width); ++column) {
      GatherConv conv = phase_gather(call, forced, row, column);
      visit(conv);
    }
}

}  // namespace

Conv2dPlan plan_conv2d_forward(const Conv2dForward& call) {
  Conv2dPlan plan = start_plan(call.shape, KernelId::kConv2dForward);
  if (runs_depthwise(plan, call)) {
    plan.scratch_floats = depthwise_scratch_floats(call);
    return plan;
  }
  const GatherConv conv = forward_gather(call, plan.forced);
  const GatherPlan gather = plan_gather(conv, plan.isa, plan.threads);
  plan.possible = gather.possible;
  plan.takes_channels_last = true;
  plan.scratch_floats = gather_scratch_floats(gather, conv);
  return plan;
}

void conv2d_forward(const Conv2dPlan& plan, const Conv2dForward& call, float* scratch) {
  if (runs_depthwise(plan, call)) {
    record_kernel(KernelId::kConv2dForward, kDepthwise, plan.isa);
    depthwise_forward(plan, call, scratch);
    return;
  }
  const GatherConv conv = forward_gather(call, plan.forced);
  const GatherPlan gather = plan_gather(conv, plan.isa, plan.threads);
  record_kernel(KernelId::kConv2dForward, gather_algorithm_name(gather.algorithm), plan.isa);
  run_gather(gather, conv, scratch);
}

Conv2dPlan plan_conv2d_grad_input(const Conv2dGradInput& call) {
  Conv2dPlan plan = start_plan(call.shape, KernelId::kConv2dGradInput);
  if (runs_depthwise(plan, call)) {
    plan.scratch_floats = depthwise_scratch_floats(call, plan.threads);
    return plan;
  }
  plan.takes_channels_last = true;
  for_each_phase(call, plan.forced, [&](const GatherConv& conv) {
    if (conv.taps() == 0) return;
    const GatherPlan gather = plan_gather(conv, plan.isa, plan.threads);
    plan.possible = plan.possible && gather.possible;
    plan.scratch_floats = std::max(plan.scratch_floats, gather_scratch_floats(gather, conv));
  });
  return plan;
}

void conv2d_grad_input(const Conv2dPlan& plan, const Conv2dGradInput& call, float* scratch) {
  if (runs_depthwise(plan, call)) {
    record_kernel(KernelId::kConv2dGradInput, kDepthwise, plan.isa);
    depthwise_grad_input(plan, call, scratch);
    return;
  }
  const Conv2dShape& s = call.shape;
  const bool all_reached = all_phases_reached(s.stride_height, s.in_height, s.padding_height,
                                              s.dilation_height, s.kernel_height) &&
                           all_phases_reached(s.stride_width, s.in_width, s.padding_width,
                                              s.dilation_width, s.kernel_width);
  if (!all_reached) fill_zero(call, plan.threads);
  bool packed = false;
  for_each_phase(call, plan.forced, [&](GatherConv& conv) {
    if (conv.taps() == 0) return;
    const GatherPlan gather = plan_gather(conv, plan.isa, plan.threads);
    record_kernel(KernelId::kConv2dGradInput, gather_algorithm_name(gather.algorithm), plan.isa);
    conv.weights_packed = packed;
    run_gather(gather, conv, scratch);
    packed = gather.algorithm == GatherAlgorithm::kRows;
  });
}

}  // namespace fastconv::cpu
