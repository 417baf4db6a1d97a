// SPDX-License-Identifier: MIT
// The direct and dot algorithms of conv2d_grad_weight.h. Each slot takes strips of output rows of
// its share of the images and keeps its own sums, which are added at the end in slot order:
//
//   direct  [in_channels * taps + 1][out_channels], the last row being the bias
//   dot     [out_channels][in_channels * taps][lanes], then the bias [out_channels][lanes]
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_dots.h"
#include "cpu/conv2d/conv2d_grad_weight.h"
#include "cpu/conv2d/conv2d_prefetch.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kStripFloats = 40 * 1024;  // copies up to this size stay in L2

struct DirectPlan {
  Isa isa;
  WeightVectors vectors;
  int64_t lanes;
  int64_t slots;
  int64_t strip_rows;  // output rows worked on at a time
  int64_t out_pitch;   // output channels rounded up to whole vectors

  int64_t copied_rows(const Conv2dShape& s, int64_t rows) const {
    return (rows - 1) * s.stride_height + (s.kernel_height - 1) * s.dilation_height + 1;
  }
  int64_t row_pitch(const Conv2dShape& s) const {
    return s.out_width + (s.kernel_width - 1) * s.dilation_width;
  }
  int64_t channel_pitch(const Conv2dShape& s) const {
    return copied_rows(s, strip_rows) * row_pitch(s);
  }
  int64_t copy_floats(const Conv2dShape& s) const { return s.in_channels * channel_pitch(s); }
  int64_t transposed_floats(const Conv2dShape& s) const {
    return vectors == WeightVectors::kPixels ? 0 : strip_rows * s.out_width * 2 * lanes;
  }
  int64_t sum_floats(const Conv2dShape& s) const {
    const int64_t columns = vectors == WeightVectors::kPixels ? s.out_channels * lanes : out_pitch;
    return (s.in_channels * s.taps() + 1) * columns;
  }
  int64_t slot_floats(const Conv2dShape& s) const {
    return round_up(copy_floats(s) + transposed_floats(s) + sum_floats(s), 16);
  }
};

DirectPlan plan_direct(const Conv2dShape& s, WeightVectors vectors, Isa isa, int64_t threads) {
  DirectPlan plan{};
  plan.isa = isa;
  plan.vectors = vectors;
  plan.lanes = gemm_kernels(isa).lanes;
  plan.out_pitch = round_up(s.out_channels, plan.lanes);
  // Fewer images than threads: cut each image into several strips.
  const int64_t cuts = s.batch >= threads ? 1 : ceil_div(threads, s.batch);
  plan.strip_rows = ceil_div(s.out_height, cuts);
  while (plan.strip_rows > 1 && plan.copy_floats(s) > kStripFloats)
    plan.strip_rows = ceil_div(plan.strip_rows, 2);
  plan.slots = std::min(threads, s.batch * ceil_div(s.out_height, plan.strip_rows));
  return plan;
}

// Output rows [first_row, first_row + rows) of one image.
struct WeightUnit {
  int64_t image;
  int64_t first_row;
  int64_t rows;
};

class WeightStrip {
 public:
  WeightStrip(const DirectPlan& plan, const Conv2dGradWeight& call, float* scratch)
      : plan_(plan),
        call_(call),
        s_(call.shape),
        kernels_(conv2d_kernels(plan.isa)),
        copy_(scratch),
        transposed_(copy_ + plan.copy_floats(s_)),
        sums_(transposed_ + plan.transposed_floats(s_)) {
    runs_.resize(plan.copied_rows(s_, plan.strip_rows));
    std::memset(sums_, 0, sizeof(float) * plan.sum_floats(s_));
  }

  // Adds one unit; what `next` reads is brought near meanwhile. nullptr: there is none.
  void run(const WeightUnit& unit, const WeightUnit* next) {
    const auto [image, first_row, rows] = unit;
    copy_input(image, first_row, rows);
    prefetch_.clear();
    if (next != nullptr) prefetch(*next);
    if (plan_.vectors == WeightVectors::kPixels) {
      multiply_along_pixels(image, first_row, rows);
      return;
    }
    start_prefetch();
    for (int64_t o = 0; o < s_.out_channels;) {
      const int64_t vectors = s_.out_channels - o > plan_.lanes ? 2 : 1;
      transpose_grad_output(image, first_row, rows, o, vectors * plan_.lanes);
      multiply(rows, o, vectors);
      o += vectors * plan_.lanes;
    }
  }

 private:
  void prefetch(const WeightUnit& unit) {
    const Strides4 &in = call_.input_strides, &go = call_.grad_output_strides;
    const int64_t top = std::max<int64_t>(0, unit.first_row * s_.stride_height - s_.padding_height);
    prefetch_.add_image(call_.input + unit.image * in.batch + top * in.row, in, s_.in_channels,
                        std::min(s_.in_height - top, unit.rows * s_.stride_height));
    prefetch_.add_image(call_.grad_output + unit.image * go.batch + unit.first_row * go.row, go,
                        s_.out_channels, unit.rows);
  }

  void start_prefetch() {
    const int64_t width = 2 * plan_.lanes;
    const int64_t wide = s_.out_channels > plan_.lanes ? 2 : 1;
    const int64_t most = find_weight_family(kernels_, s_.kernel_width, wide)->max_lines;
    prefetch_.start(ceil_div(s_.out_channels, width) *
                    ceil_div(s_.in_channels * s_.kernel_height, most));
  }

  void copy_input(int64_t image, int64_t first_row, int64_t rows) {
    const Strides4& in = call_.input_strides;
    const int64_t copied = plan_.copied_rows(s_, rows);
    for (int64_t r = 0; r < copied; ++r)
      runs_[r] = {plan_.row_pitch(s_), call_.input + image * in.batch,
                  first_row * s_.stride_height - s_.padding_height + r, -s_.padding_width};
    const int64_t here = 0;
    kernels_.pack_panel({runs_.data(), copied, &here, 1, &here, 1, s_.in_channels, in.channel,
                         in.row, in.column, 1, s_.in_height, s_.in_width, copy_,
                         plan_.channel_pitch(s_)});
  }

  // transposed_[pixel][channel] of `columns` output channels from o on, zero past the last one.
  void transpose_grad_output(int64_t image, int64_t first_row, int64_t rows, int64_t o,
                             int64_t columns) {
    const Strides4& go = call_.grad_output_strides;
    const int64_t channels = std::min(columns, s_.out_channels - o);
    if (channels < columns)
      std::memset(transposed_, 0, sizeof(float) * rows * s_.out_width * columns);
    const float* source =
        call_.grad_output + image * go.batch + o * go.channel + first_row * go.row;
    // Rows that follow each other without a gap are one long row.
    const bool dense = go.row == s_.out_width * go.column;
    const int64_t pieces = dense ? 1 : rows;
    const int64_t pixels = rows * s_.out_width / pieces;
    for (int64_t i = 0; i < pieces; ++i)
      kernels_.copy_block({channels, pixels, source + i * go.row, go.channel, go.column,
                           transposed_ + i * pixels * columns, 1, columns});
  }

  // Input row of the copy that line `line` = (channel, kernel row) starts with.
  const float* line_start(int64_t line) const {
    return copy_ + line / s_.kernel_height * plan_.channel_pitch(s_) +
           line % s_.kernel_height * s_.dilation_height * plan_.row_pitch(s_);
  }

  void multiply_along_pixels(int64_t image, int64_t first_row, int64_t rows) {
    const Strides4& go = call_.grad_output_strides;
    const int64_t taps = s_.in_channels * s_.taps();
    DotTile strip{};
    strip.rows = rows;
    strip.width = s_.out_width;
    strip.line_pitch = s_.stride_height * plan_.row_pitch(s_);
    strip.grad = call_.grad_output + image * go.batch + first_row * go.row;
    strip.grad_channel = go.channel;
    strip.grad_row = go.row;
    strip.sums = sums_;
    if (call_.grad_bias != nullptr) strip.bias = sums_ + s_.out_channels * taps * plan_.lanes;
    add_dots(
        kernels_.dot, plan_.lanes, strip, taps, s_.out_channels,
        [&](int64_t tap) {
          return line_start(tap / s_.kernel_width) + tap % s_.kernel_width * s_.dilation_width;
        },
        &prefetch_);
  }

  void multiply(int64_t rows, int64_t o, int64_t vectors) {
    const WeightFamily& family = *find_weight_family(kernels_, s_.kernel_width, vectors);
    const int64_t lines = s_.in_channels * s_.kernel_height;
    const int64_t blocks = ceil_div(lines, family.max_lines);
    const int64_t block_lines = ceil_div(lines, blocks);
    WeightTile tile{};
    tile.rows = rows;
    tile.width = s_.out_width;
    tile.line_pitch = s_.stride_height * plan_.row_pitch(s_);
    tile.b = transposed_;
    tile.b_pitch = vectors * plan_.lanes;
    tile.c_pitch = plan_.out_pitch;
    for (int64_t first = 0; first < lines; first += block_lines) {
      const int64_t count = std::min(block_lines, lines - first);
      for (int64_t l = 0; l < count; ++l) tile.lines[l] = line_start(first + l);
      tile.c = sums_ + first * s_.kernel_width * plan_.out_pitch + o;
      tile.bias = first == 0 ? sums_ + s_.in_channels * s_.taps() * plan_.out_pitch + o : nullptr;
      prefetch_.step();
      family.by_lines[count - 1](tile);
    }
  }

  const DirectPlan& plan_;
  const Conv2dGradWeight& call_;
  const Conv2dShape& s_;
  const Conv2dKernels& kernels_;
  float* copy_;
  float* transposed_;
  float* sums_;
  std::vector<PixelRun> runs_;
  Prefetch prefetch_;
};

// Adds the sums of all slots and writes both gradients; `sums` is slot 0's.
void store_channel_sums(const DirectPlan& plan, const Conv2dGradWeight& call, float* sums) {
  const Conv2dShape& s = call.shape;
  for (int64_t slot = 1; slot < plan.slots; ++slot) {
    const float* part = sums + slot * plan.slot_floats(s);
    for (int64_t i = 0; i < plan.sum_floats(s); ++i) sums[i] += part[i];
  }
  const int64_t rows = s.in_channels * s.taps();
  conv2d_kernels(plan.isa).copy_block(
      {rows, s.out_channels, sums, plan.out_pitch, 1, call.grad_weight, 1, rows});
  if (call.grad_bias != nullptr)
    std::copy_n(sums + rows * plan.out_pitch, s.out_channels, call.grad_bias);
}

}  // namespace

bool weight_direct_applies(const Conv2dShape& s) {
  const bool width_has_tiles = s.kernel_width == 3 || s.kernel_width == 5 || s.kernel_width == 7;
  return s.groups == 1 && s.stride_width == 1 && s.dilation_width == 1 && width_has_tiles;
}

bool weight_dot_applies(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  return s.groups == 1 && s.stride_width == 1 && call.grad_output_strides.column == 1;
}

int64_t weight_direct_scratch_floats(const Conv2dShape& s, WeightVectors vectors, Isa isa,
                                     int64_t threads) {
  const DirectPlan plan = plan_direct(s, vectors, isa, threads);
  return plan.slots * plan.slot_floats(s);
}

void grad_weight_direct(const Conv2dPlan& call_plan, const Conv2dGradWeight& call,
                        WeightVectors vectors, float* scratch) {
  const Conv2dShape& s = call.shape;
  const DirectPlan plan = plan_direct(s, vectors, call_plan.isa, call_plan.threads);
  const int64_t strips = ceil_div(s.out_height, plan.strip_rows);
  const int64_t units = s.batch * strips;
  parallel_for(plan.slots, [&](int64_t slot) {
    WeightStrip work(plan, call, scratch + slot * plan.slot_floats(s));
    const auto unit = [&](int64_t u) {
      const int64_t first_row = u % strips * plan.strip_rows;
      return WeightUnit{u / strips, first_row, std::min(plan.strip_rows, s.out_height - first_row)};
    };
    run_share(units, slot, plan.slots, unit, &work);
  });
  float* sums = scratch + plan.copy_floats(s) + plan.transposed_floats(s);
  if (vectors == WeightVectors::kPixels) {
    store_lane_sums(conv2d_kernels(plan.isa), plan.lanes, call,
                    {sums, plan.slot_floats(s), plan.slots});
  } else {
    store_channel_sums(plan, call, sums);
  }
}

}  // namespace fastconv::cpu
