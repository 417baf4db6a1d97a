// SPDX-License-Identifier: MIT
// The image_vectors algorithm of conv2d_grad_weight.h: strips of rows of as many images as a vector
// has lanes are transposed (conv2d_lanes.h), and the tiles of `dot` add up the products of their
// pixels, whose rows are then whole vectors whatever the width of the map. Each slot keeps its own
// sums, [out_channels][in_channels * taps][lanes], then the bias [out_channels][lanes]; they are
// added at the end in slot order.
#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_dots.h"
#include "cpu/conv2d/conv2d_grad_weight.h"
#include "cpu/conv2d/conv2d_lanes.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kCopyFloats = 96 * 1024;  // of both operands, which stay in L2
constexpr int64_t kRunPixels = 256;         // added in one run, for their rounding errors

struct ImagesPlan {
  Isa isa;
  LaneLayout layout;
  int64_t slots;
  int64_t strip_rows;  // output rows of a cut worked on at a time

  int64_t cut_rows(const Conv2dShape& s) const { return s.out_height / layout.cuts; }
  int64_t strips(const Conv2dShape& s) const { return ceil_div(cut_rows(s), strip_rows); }
  int64_t copied_rows(const Conv2dShape& s, int64_t rows) const {
    return (rows - 1) * s.stride_height + (s.kernel_height - 1) * s.dilation_height + 1;
  }
  int64_t copied_columns(const Conv2dShape& s) const {
    return s.out_width + (s.kernel_width - 1) * s.dilation_width;
  }
  // Odd numbers of pixels, so that the channels do not compete for the same L1 sets.
  int64_t input_pitch(const Conv2dShape& s) const {
    return (copied_rows(s, strip_rows) * copied_columns(s) | 1) * layout.lanes;
  }
  int64_t grad_pitch(const Conv2dShape& s) const {
    return (strip_rows * s.out_width | 1) * layout.lanes;
  }
  int64_t input_floats(const Conv2dShape& s) const { return s.in_channels * input_pitch(s); }
  int64_t grad_floats(const Conv2dShape& s) const { return s.out_channels * grad_pitch(s); }
  int64_t sum_floats(const Conv2dShape& s) const {
    return (s.in_channels * s.taps() + 1) * s.out_channels * layout.lanes;
  }
  int64_t slot_floats(const Conv2dShape& s) const {
    return input_floats(s) + grad_floats(s) + sum_floats(s);
  }
};

ImagesPlan plan_images(const Conv2dShape& s, Isa isa, int64_t threads) {
  ImagesPlan plan{};
  plan.isa = isa;
  plan.layout = choose_lanes(gemm_kernels(isa).lanes, s.batch, s.out_height);
  plan.strip_rows = std::clamp<int64_t>(kRunPixels / s.out_width, 1, plan.cut_rows(s));
  plan.strip_rows = ceil_div(plan.cut_rows(s), plan.strips(s));
  const auto units = [&] { return plan.layout.blocks() * plan.strips(s); };
  while (plan.strip_rows > 1 &&
         (plan.input_floats(s) + plan.grad_floats(s) > kCopyFloats || is_uneven(units(), threads)))
    plan.strip_rows = ceil_div(plan.strip_rows, 2);
  plan.slots = std::min(threads, units());
  return plan;
}

// Output rows [first_row, first_row + rows) of every cut of a block.
struct ImagesStrip {
  int64_t block;
  int64_t first_row;
  int64_t rows;
};

// Adds strips one by one to the sums of one slot.
class ImageSums {
 public:
  ImageSums(const ImagesPlan& plan, const Conv2dGradWeight& call, float* scratch)
      : plan_(plan),
        call_(call),
        s_(call.shape),
        kernels_(conv2d_kernels(plan.isa)),
        lanes_(plan.layout.lanes),
        input_(scratch),
        grad_(input_ + plan.input_floats(s_)),
        sums_(grad_ + plan.grad_floats(s_)) {
    std::memset(input_, 0, sizeof(float) * plan.slot_floats(s_));
  }

  void run(const ImagesStrip& strip) {
    // Unused lanes are added up like the others: both factors must be zero.
    if (plan_.layout.used_lanes(strip.block) < lanes_)
      std::memset(input_, 0, sizeof(float) * (plan_.input_floats(s_) + plan_.grad_floats(s_)));
    copy_to_lanes(kernels_, plan_.layout, strip.block, input(strip), input_, plan_.input_pitch(s_));
    copy_to_lanes(kernels_, plan_.layout, strip.block, grad(strip), grad_, plan_.grad_pitch(s_));
    multiply(strip.rows);
  }

 private:
  LaneWindow input(const ImagesStrip& strip) const {
    return {call_.input,
            call_.input_strides,
            s_.in_channels,
            s_.in_height,
            s_.in_width,
            strip.first_row * s_.stride_height - s_.padding_height,
            plan_.copied_rows(s_, strip.rows),
            plan_.cut_rows(s_) * s_.stride_height,
            -s_.padding_width,
            plan_.copied_columns(s_)};
  }

  LaneWindow grad(const ImagesStrip& strip) const {
    return {call_.grad_output,
            call_.grad_output_strides,
            s_.out_channels,
            s_.out_height,
            s_.out_width,
            strip.first_row,
            strip.rows,
            plan_.cut_rows(s_),
            0,
            s_.out_width};
  }

  void multiply(int64_t rows) {
    const int64_t taps = s_.in_channels * s_.taps();
    const int64_t columns = plan_.copied_columns(s_);
    DotTile strip{};
    strip.rows = rows;
    strip.width = s_.out_width * lanes_;
    strip.line_pitch = s_.stride_height * columns * lanes_;
    strip.grad = grad_;
    strip.grad_channel = plan_.grad_pitch(s_);
    strip.grad_row = s_.out_width * lanes_;
    strip.sums = sums_;
    if (call_.grad_bias != nullptr) strip.bias = sums_ + s_.out_channels * taps * lanes_;
    add_dots(kernels_.dot, lanes_, strip, taps, s_.out_channels, [&](int64_t tap) {
      const int64_t row = tap / s_.kernel_width % s_.kernel_height * s_.dilation_height;
      const int64_t column = tap % s_.kernel_width * s_.dilation_width;
      return input_ + tap / s_.taps() * plan_.input_pitch(s_) + (row * columns + column) * lanes_;
    });
  }

  const ImagesPlan& plan_;
  const Conv2dGradWeight& call_;
  const Conv2dShape& s_;
  const Conv2dKernels& kernels_;
  const int64_t lanes_;
  float* input_;  // [channel][row][column][lane]
  float* grad_;   // [channel][row][column][lane]
  float* sums_;
};

}  // namespace

bool weight_images_applies(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  return s.groups == 1 && s.stride_width == 1 && call.grad_output_strides.column == 1 &&
         call.input_strides.column == 1;
}

double weight_images_fill(const Conv2dShape& s, Isa isa) {
  return choose_lanes(gemm_kernels(isa).lanes, s.batch, s.out_height).fill();
}

int64_t weight_images_scratch_floats(const Conv2dShape& s, Isa isa, int64_t threads) {
  const ImagesPlan plan = plan_images(s, isa, threads);
  return plan.slots * plan.slot_floats(s);
}

void grad_weight_images(const Conv2dPlan& call_plan, const Conv2dGradWeight& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const ImagesPlan plan = plan_images(s, call_plan.isa, call_plan.threads);
  const int64_t strips = plan.strips(s);
  const int64_t units = plan.layout.blocks() * strips;
  parallel_for(plan.slots, [&](int64_t slot) {
    ImageSums work(plan, call, scratch + slot * plan.slot_floats(s));
    for (int64_t u = units * slot / plan.slots; u < units * (slot + 1) / plan.slots; ++u) {
      const int64_t first_row = u % strips * plan.strip_rows;
      work.run({u / strips, first_row, std::min(plan.strip_rows, plan.cut_rows(s) - first_row)});
    }
  });
  store_lane_sums(
      conv2d_kernels(plan.isa), plan.layout.lanes, call,
      {scratch + plan.input_floats(s) + plan.grad_floats(s), plan.slot_floats(s), plan.slots});
}

}  // namespace fastconv::cpu
