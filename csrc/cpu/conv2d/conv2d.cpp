// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d.h"

#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_gather.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

// The inputs of one stride phase along one dimension: positions first, first + stride, ...
struct Phase {
  int64_t first;
  int64_t count;
};

// One kernel position that reaches a phase: output = grid index + offset.
struct PhaseTap {
  int64_t kernel_index;
  int64_t offset;
};

Phase input_phase(int64_t phase, int64_t stride, int64_t padding, int64_t size) {
  const int64_t first = ((phase - padding) % stride + stride) % stride;
  return {first, first >= size ? 0 : ceil_div(size - first, stride)};
}

std::vector<PhaseTap> phase_taps(int64_t first, int64_t stride, int64_t padding, int64_t dilation,
                                 int64_t kernel) {
  std::vector<PhaseTap> taps;
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t numerator = first + padding - k * dilation;
    if (numerator % stride == 0) taps.push_back({k, numerator / stride});
  }
  return taps;
}

void fill_zero(const GatherConv& conv) {
  for (int64_t n = 0; n < conv.batch; ++n)
    for (int64_t o = 0; o < conv.groups * conv.out_channels; ++o)
      for (int64_t i = 0; i < conv.grid_height; ++i)
        for (int64_t j = 0; j < conv.grid_width; ++j)
          conv.output[n * conv.output_strides.batch + o * conv.output_strides.channel +
                      i * conv.output_strides.row + j * conv.output_strides.column] = 0.0f;
}

}  // namespace

Conv2dPlan plan_conv2d_forward(const Conv2dShape& s) {
  return plan_gather(s.groups, s.group_in_channels(), s.group_out_channels(), s.taps(),
                     s.batch * s.out_pixels());
}

void conv2d_forward(const Conv2dPlan& plan, const Conv2dForward& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  GatherConv conv{s.batch,
                  s.groups,
                  s.group_in_channels(),
                  s.in_height,
                  s.in_width,
                  call.input,
                  call.input_strides,
                  s.group_out_channels(),
                  s.out_height,
                  s.out_width,
                  call.output,
                  call.output_strides,
                  s.stride_height,
                  s.stride_width,
                  {},
                  call.weight,
                  s.group_out_channels() * s.group_in_channels() * s.taps(),
                  s.group_in_channels() * s.taps(),
                  s.taps(),
                  {},
                  call.bias};
  for (int64_t r = 0; r < s.kernel_height; ++r) {
    for (int64_t q = 0; q < s.kernel_width; ++q) {
      conv.taps.push_back({r * s.dilation_height - s.padding_height,
                           q * s.dilation_width - s.padding_width});
      conv.weight_tap.push_back(r * s.kernel_width + q);
    }
  }
  record_kernel(KernelId::kConv2dForward, "gather", plan.isa);
  run_gather(plan, conv, scratch);
}

Conv2dPlan plan_conv2d_grad_input(const Conv2dShape& s) {
  const int64_t phase_pixels =
      s.batch * ceil_div(s.in_height, s.stride_height) * ceil_div(s.in_width, s.stride_width);
  return plan_gather(s.groups, s.group_out_channels(), s.group_in_channels(), s.taps(),
                     phase_pixels);
}

void conv2d_grad_input(const Conv2dPlan& plan, const Conv2dGradInput& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const Strides4& gi = call.grad_input_strides;
  record_kernel(KernelId::kConv2dGradInput, "gather", plan.isa);
  for (int64_t phase_row = 0; phase_row < s.stride_height; ++phase_row) {
    const Phase rows = input_phase(phase_row, s.stride_height, s.padding_height, s.in_height);
    const auto row_taps = phase_taps(rows.first, s.stride_height, s.padding_height,
                                     s.dilation_height, s.kernel_height);
    for (int64_t phase_column = 0; phase_column < s.stride_width; ++phase_column) {
      const Phase columns = input_phase(phase_column, s.stride_width, s.padding_width, s.in_width);
      if (rows.count == 0 || columns.count == 0) continue;
      const auto column_taps = phase_taps(columns.first, s.stride_width, s.padding_width,
                                          s.dilation_width, s.kernel_width);
      GatherConv conv{s.batch,
                      s.groups,
                      s.group_out_channels(),
                      s.out_height,
                      s.out_width,
                      call.grad_output,
                      call.grad_output_strides,
                      s.group_in_channels(),
                      rows.count,
                      columns.count,
                      call.grad_input + rows.first * gi.row + columns.first * gi.column,
                      {gi.batch, gi.channel, gi.row * s.stride_height, gi.column * s.stride_width},
                      1,
                      1,
                      {},
                      call.weight,
                      s.group_out_channels() * s.group_in_channels() * s.taps(),
                      s.taps(),
                      s.group_in_channels() * s.taps(),
                      {},
                      nullptr};
      for (const PhaseTap& r : row_taps) {
        for (const PhaseTap& q : column_taps) {
          conv.taps.push_back({r.offset, q.offset});
          conv.weight_tap.push_back(r.kernel_index * s.kernel_width + q.kernel_index);
        }
      }
      if (conv.taps.empty()) {
        fill_zero(conv);
      } else {
        run_gather(plan, conv, scratch);
      }
    }
  }
}

}  // namespace fastconv::cpu
