// SPDX-License-Identifier: MIT
#include "cpu/conv2d/depthwise.h"

#include <algorithm>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_phases.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/depthwise_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

bool is_depthwise(const Conv2dShape& s) {
  return s.groups == s.in_channels && s.groups == s.out_channels && s.taps() <= kMaxDepthwiseTaps;
}

bool is_planar(const Strides4& strides) {
  return strides.column == 1;
}
bool is_channels_last(const Strides4& strides) {
  return strides.channel == 1;
}

// Whether a pass runs plane by plane; otherwise it needs channels_last on both sides.
bool runs_on_planes(const Conv2dForward& call) {
  return is_planar(call.input_strides) && is_planar(call.output_strides) &&
         call.shape.stride_width <= 2;
}

bool runs_on_planes(const Conv2dGradInput& call) {
  return is_planar(call.grad_output_strides) && is_planar(call.grad_input_strides) &&
         call.shape.stride_width <= 2;
}

bool runs_on_planes(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  const bool has_tile = (s.kernel_height == 3 && s.kernel_width == 3) ||
                        (s.kernel_height == 5 && s.kernel_width == 5) || s.kernel_width == 7;
  return is_planar(call.input_strides) && is_planar(call.grad_output_strides) &&
         s.stride_width <= 2 && has_tile;
}

DepthwiseTaps forward_taps(const Conv2dShape& s) {
  DepthwiseTaps taps{};
  taps.row_count = s.kernel_height;
  taps.column_count = s.kernel_width;
  taps.row_step = s.stride_height;
  taps.column_step = s.stride_width;
  for (int64_t r = 0; r < s.kernel_height; ++r)
    taps.rows[r] = r * s.dilation_height - s.padding_height;
  for (int64_t q = 0; q < s.kernel_width; ++q)
    taps.columns[q] = q * s.dilation_width - s.padding_width;
  return taps;
}

// Splits [0, units) over at most `threads` slots: body(slot, first, last).
template <typename Body>
void for_each_slot(int64_t units, int64_t threads, const Body& body) {
  const int64_t slots = std::clamp<int64_t>(threads, 1, units);
  parallel_for(slots,
               [&](int64_t slot) { body(slot, units * slot / slots, units * (slot + 1) / slots); });
}

// weights [channels, taps] -> packed [taps, channels]
void pack_weights(const Conv2dPlan& plan, const float* weight, int64_t channels, int64_t taps,
                  float* packed) {
  conv2d_kernels(plan.isa).copy_block({channels, taps, weight, taps, 1, packed, 1, channels});
}

// Rows [first, last) of the output of `image`, with the taps moved along.
DepthwiseImage image_rows(const DepthwiseImage& image, int64_t first, int64_t last,
                          DepthwiseTaps* taps) {
  DepthwiseImage part = image;
  part.output += first * image.out_row;
  part.out_height = last - first;
  for (int64_t r = 0; r < taps->row_count; ++r) taps->rows[r] += first * taps->row_step;
  return part;
}

// Channels-last gather over a batch: every image in pieces of rows, spread over the threads.
void run_images(const Conv2dPlan& plan, const DepthwiseTaps& taps, const DepthwiseImage& image,
                int64_t batch, int64_t in_batch, int64_t out_batch, const float* weights,
                const float* bias) {
  const int64_t pieces = batch >= plan.threads ? 1 : std::min(plan.threads, image.out_height);
  for_each_slot(batch * pieces, plan.threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t n = u / pieces, piece = u % pieces;
      DepthwiseTaps moved = taps;
      DepthwiseImage part = image_rows(image, image.out_height * piece / pieces,
                                       image.out_height * (piece + 1) / pieces, &moved);
      part.input += n * in_batch;
      part.output += n * out_batch;
      depthwise_kernels(plan.isa).run_image(moved, part, weights, bias);
    }
  });
}

// The gather of one stride phase: its taps, and its weights [channels, taps] in kernel order.
struct PhaseGather {
  Phase rows;
  Phase columns;
  DepthwiseTaps taps;
  std::vector<int64_t> weight_index;
};

PhaseGather phase_gather(const Conv2dShape& s, int64_t phase_row, int64_t phase_column) {
  PhaseGather gather{};
  gather.rows = input_phase(phase_row, s.stride_height, s.in_height);
  gather.columns = input_phase(phase_column, s.stride_width, s.in_width);
  const auto row_taps = phase_taps(gather.rows.first, s.stride_height, s.padding_height,
                                   s.dilation_height, s.kernel_height);
  const auto column_taps = phase_taps(gather.columns.first, s.stride_width, s.padding_width,
                                      s.dilation_width, s.kernel_width);
  gather.taps.row_step = 1;
  gather.taps.column_step = 1;
  for (const PhaseTap& r : row_taps) gather.taps.rows[gather.taps.row_count++] = r.offset;
  for (const PhaseTap& q : column_taps) gather.taps.columns[gather.taps.column_count++] = q.offset;
  for (const PhaseTap& r : row_taps)
    for (const PhaseTap& q : column_taps)
      gather.weight_index.push_back(r.kernel_index * s.kernel_width + q.kernel_index);
  return gather;
}

// One plane of the input gradient, all phases of it. With a column stride of two, the two column
// phases are computed side by side in `rows_scratch` and interleaved.
class GradInputPlane {
 public:
  GradInputPlane(const Conv2dPlan& plan, const Conv2dGradInput& call,
                 const std::vector<PhaseGather>& gathers, const float* zeros, float* scratch)
      : call_(call),
        s_(call.shape),
        kernels_(depthwise_kernels(plan.isa)),
        gathers_(gathers),
        zeros_(zeros),
        scratch_(scratch) {}

  void run(int64_t n, int64_t c) {
    const Strides4 &gi = call_.grad_input_strides, &go = call_.grad_output_strides;
    const float* grad_output = call_.grad_output + n * go.batch + c * go.channel;
    float* grad_input = call_.grad_input + n * gi.batch + c * gi.channel;
    const float* weight = call_.weight + c * s_.taps();
    const int64_t column_phases = phase_count(s_.stride_width, s_.in_width);
    for (size_t g = 0; g < gathers_.size(); g += column_phases) {
      const Phase rows = gathers_[g].rows;
      float* target = grad_input + rows.first * gi.row;
      const int64_t target_row = s_.stride_height * gi.row;
      if (column_phases == 1) {
        run_phase(gathers_[g], grad_output, weight, target, target_row);
        continue;
      }
      float* parity[2];
      for (int64_t p = 0; p < 2; ++p) {
        const PhaseGather& gather = gathers_[g + p];
        parity[gather.columns.first] = scratch_ + p * rows.count * half_width();
        run_phase(gather, grad_output, weight, parity[gather.columns.first], half_width());
      }
      for (int64_t i = 0; i < rows.count; ++i) {
        float* row = target + i * target_row;
        kernels_.interleave(parity[0] + i * half_width(), parity[1] + i * half_width(),
                            s_.in_width / 2, row);
        if (s_.in_width % 2 == 1)
          row[s_.in_width - 1] = parity[0][i * half_width() + s_.in_width / 2];
      }
    }
  }

 private:
  int64_t half_width() const { return ceil_div(s_.in_width, 2); }

  void run_phase(const PhaseGather& gather, const float* grad_output, const float* weight,
                 float* target, int64_t target_row) const {
    if (gather.weight_index.empty()) {
      for (int64_t i = 0; i < gather.rows.count; ++i)
        std::fill_n(target + i * target_row, gather.columns.count, 0.0f);
      return;
    }
    float phase_weight[kMaxDepthwiseTaps];
    for (size_t t = 0; t < gather.weight_index.size(); ++t)
      phase_weight[t] = weight[gather.weight_index[t]];
    kernels_.run_plane(gather.taps,
                       {grad_output, s_.out_height, s_.out_width, call_.grad_output_strides.row,
                        zeros_, target, gather.rows.count, gather.columns.count, target_row},
                       phase_weight, 0.0f);
  }

  const Conv2dGradInput& call_;
  const Conv2dShape& s_;
  const DepthwiseKernels& kernels_;
  const std::vector<PhaseGather>& gathers_;
  const float* zeros_;
  float* scratch_;
};

int64_t grad_input_plane_floats(const Conv2dShape& s) {
  return s.stride_width == 1 ? 0 : 2 * s.in_height * ceil_div(s.in_width, 2);
}

void grad_input_images(const Conv2dPlan& plan, const Conv2dGradInput& call,
                       const std::vector<PhaseGather>& gathers, float* packed) {
  const Conv2dShape& s = call.shape;
  const Strides4 &gi = call.grad_input_strides, &go = call.grad_output_strides;
  for (const PhaseGather& gather : gathers) {
    for (size_t t = 0; t < gather.weight_index.size(); ++t)
      for (int64_t c = 0; c < s.groups; ++c)
        packed[t * s.groups + c] = call.weight[c * s.taps() + gather.weight_index[t]];
    DepthwiseImage image{};
    image.channels = s.groups;
    image.input = call.grad_output;
    image.in_height = s.out_height;
    image.in_width = s.out_width;
    image.in_row = go.row;
    image.in_column = go.column;
    image.output = call.grad_input + gather.rows.first * gi.row + gather.columns.first * gi.column;
    image.out_height = gather.rows.count;
    image.out_width = gather.columns.count;
    image.out_row = gi.row * s.stride_height;
    image.out_column = gi.column * s.stride_width;
    run_images(plan, gather.taps, image, s.batch, go.batch, gi.batch, packed, nullptr);
  }
}

// Sums [taps + 1, lanes] of one channel over the batch, for each channel in turn.
void grad_weight_planes(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const Strides4 &in = call.input_strides, &go = call.grad_output_strides;
  const DepthwiseTaps taps = forward_taps(s);
  const int64_t lanes = gemm_kernels(plan.isa).lanes;
  std::fill_n(scratch, s.in_width, 0.0f);
  float* slots = scratch + s.in_width;
  for_each_slot(s.groups, plan.threads, [&](int64_t slot, int64_t begin, int64_t end) {
    float* sums = slots + slot * (s.taps() + 1) * lanes;
    for (int64_t c = begin; c < end; ++c) {
      std::fill_n(sums, (s.taps() + 1) * lanes, 0.0f);
      for (int64_t n = 0; n < s.batch; ++n) {
        // The kernel only reads its output plane, the gradient here.
        float* grad = const_cast<float*>(call.grad_output) + n * go.batch + c * go.channel;
        depthwise_kernels(plan.isa).add_plane_products(
            taps,
            {call.input + n * in.batch + c * in.channel, s.in_height, s.in_width, in.row, scratch,
             grad, s.out_height, s.out_width, go.row},
            sums);
      }
      float* grad_weight = call.grad_weight + c * s.taps();
      std::fill_n(grad_weight, s.taps(), 0.0f);
      conv2d_kernels(plan.isa).add_lanes(sums, s.taps(), grad_weight);
      if (call.grad_bias == nullptr) continue;
      call.grad_bias[c] = 0.0f;
      conv2d_kernels(plan.isa).add_lanes(sums + s.taps() * lanes, 1, call.grad_bias + c);
    }
  });
}

// Sums [taps + 1, channels] of a share of the images per slot, added in slot order.
void grad_weight_images(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const Strides4 &in = call.input_strides, &go = call.grad_output_strides;
  const DepthwiseTaps taps = forward_taps(s);
  const int64_t floats = (s.taps() + 1) * s.groups;
  const int64_t slots = std::clamp<int64_t>(plan.threads, 1, s.batch);
  for_each_slot(s.batch, slots, [&](int64_t slot, int64_t begin, int64_t end) {
    float* sums = scratch + slot * floats;
    std::fill_n(sums, floats, 0.0f);
    for (int64_t n = begin; n < end; ++n) {
      DepthwiseImage image{};
      image.channels = s.groups;
      image.input = call.input + n * in.batch;
      image.in_height = s.in_height;
      image.in_width = s.in_width;
      image.in_row = in.row;
      image.in_column = in.column;
      image.output = const_cast<float*>(call.grad_output) + n * go.batch;  // read only
      image.out_height = s.out_height;
      image.out_width = s.out_width;
      image.out_row = go.row;
      image.out_column = go.column;
      depthwise_kernels(plan.isa).add_image_products(taps, image, sums);
    }
  });
  for (int64_t slot = 1; slot < slots; ++slot)
    for (int64_t i = 0; i < floats; ++i) scratch[i] += scratch[slot * floats + i];
  conv2d_kernels(plan.isa).copy_block(
      {s.taps(), s.groups, scratch, s.groups, 1, call.grad_weight, 1, s.taps()});
  if (call.grad_bias != nullptr)
    std::copy_n(scratch + s.taps() * s.groups, s.groups, call.grad_bias);
}

}  // namespace

bool depthwise_applies(const Conv2dForward& call) {
  const bool channels_last =
      is_channels_last(call.input_strides) && is_channels_last(call.output_strides);
  return is_depthwise(call.shape) && (runs_on_planes(call) || channels_last);
}

bool depthwise_applies(const Conv2dGradInput& call) {
  const bool channels_last =
      is_channels_last(call.grad_output_strides) && is_channels_last(call.grad_input_strides);
  return is_depthwise(call.shape) && (runs_on_planes(call) || channels_last);
}

bool depthwise_applies(const Conv2dGradWeight& call) {
  const bool channels_last =
      is_channels_last(call.input_strides) && is_channels_last(call.grad_output_strides);
  return is_depthwise(call.shape) && (runs_on_planes(call) || channels_last);
}

int64_t depthwise_scratch_floats(const Conv2dForward& call) {
  return std::max(call.shape.in_width, call.shape.taps() * call.shape.groups);
}

int64_t depthwise_scratch_floats(const Conv2dGradInput& call, int64_t threads) {
  const Conv2dShape& s = call.shape;
  return std::max(s.out_width + threads * grad_input_plane_floats(s), s.taps() * s.groups);
}

int64_t depthwise_scratch_floats(const Conv2dGradWeight& call, int64_t threads) {
  const Conv2dShape& s = call.shape;
  constexpr int64_t kMaxLanes = 16;
  return std::max(s.in_width + threads * (s.taps() + 1) * kMaxLanes,
                  threads * (s.taps() + 1) * s.groups);
}

void depthwise_forward(const Conv2dPlan& plan, const Conv2dForward& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const Strides4 &in = call.input_strides, &out = call.output_strides;
  const DepthwiseTaps taps = forward_taps(s);
  if (!runs_on_planes(call)) {
    pack_weights(plan, call.weight, s.groups, s.taps(), scratch);
    run_images(plan, taps,
               {s.groups, call.input, s.in_height, s.in_width, in.row, in.column, call.output,
                s.out_height, s.out_width, out.row, out.column},
               s.batch, in.batch, out.batch, scratch, call.bias);
    return;
  }
  std::fill_n(scratch, s.in_width, 0.0f);
  for_each_slot(s.batch * s.groups, plan.threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t n = u / s.groups, c = u % s.groups;
      depthwise_kernels(plan.isa).run_plane(
          taps,
          {call.input + n * in.batch + c * in.channel, s.in_height, s.in_width, in.row, scratch,
           call.output + n * out.batch + c * out.channel, s.out_height, s.out_width, out.row},
          call.weight + c * s.taps(), call.bias == nullptr ? 0.0f : call.bias[c]);
    }
  });
}

void depthwise_grad_input(const Conv2dPlan& plan, const Conv2dGradInput& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  std::vector<PhaseGather> gathers;
  for (int64_t row = 0; row < phase_count(s.stride_height, s.in_height); ++row)
    for (int64_t column = 0; column < phase_count(s.stride_width, s.in_width); ++column)
      gathers.push_back(phase_gather(s, row, column));
  if (!runs_on_planes(call)) {
    grad_input_images(plan, call, gathers, scratch);
    return;
  }
  std::fill_n(scratch, s.out_width, 0.0f);
  float* slots = scratch + s.out_width;
  for_each_slot(s.batch * s.groups, plan.threads, [&](int64_t slot, int64_t begin, int64_t end) {
    GradInputPlane plane(plan, call, gathers, scratch, slots + slot * grad_input_plane_floats(s));
    for (int64_t u = begin; u < end; ++u) plane.run(u / s.groups, u % s.groups);
  });
}

void depthwise_grad_weight(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch) {
  if (runs_on_planes(call)) {
    grad_weight_planes(plan, call, scratch);
  } else {
    grad_weight_images(plan, call, scratch);
  }
}

}  // namespace fastconv::cpu
