// SPDX-License-Identifier: MIT
// The panel algorithm of conv2d_grad_weight.h. The bias gradient is one more panel row, all ones.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_grad_weight.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_weight_units.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kChunkPixels = 256;  // pixels per pass: kPanelPitch without its padding
constexpr int64_t kMaxRows = 256;      // panel rows: 256 x 272 floats are 272 KB of L2

// Per task: the panel, the transposed grad_output of one block of output channels, the sums.
struct ScratchLayout {
  int64_t out_pitch;  // output channels of a group rounded up to whole vectors
  int64_t rows;       // panel rows, the row of ones included
  int64_t panel() const { return rows * kPanelPitch; }
  int64_t sums() const { return rows * out_pitch; }
  int64_t task(int64_t transposed) const { return panel() + transposed + sums(); }
};

int64_t wide_columns(const GemmKernels& kernels) {
  return kernels.panel_wide.vectors * kernels.lanes;
}

// The blocking of one call.
struct WeightPlan {
  Isa isa;
  int64_t slots;           // pieces that run in parallel
  int64_t block_channels;  // input channels of one panel
  int64_t pixel_slices;    // independent partial sums over the pixels
};

ScratchLayout scratch_layout(const WeightPlan& plan, const Conv2dShape& s) {
  return {round_up(s.group_out_channels(), gemm_kernels(plan.isa).lanes),
          s.taps() * plan.block_channels + 1};
}

int64_t task_floats(const WeightPlan& plan, const Conv2dShape& s) {
  return scratch_layout(plan, s).task(kChunkPixels * wide_columns(gemm_kernels(plan.isa)));
}

int64_t channel_blocks(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.group_in_channels(), plan.block_channels);
}

WeightUnits weight_units(const WeightPlan& plan, const Conv2dShape& s) {
  return {s.groups * channel_blocks(plan, s) * plan.pixel_slices, plan.pixel_slices, plan.slots};
}

// Input position of each kernel row and column relative to tap offset (0, 0).
struct KernelTaps {
  std::vector<int64_t> rows;
  std::vector<int64_t> columns;
};

// Sums over the pixels of one slice, for one group and one block of input channels.
class WeightBlock {
 public:
  WeightBlock(const WeightPlan& plan, const Conv2dGradWeight& call, const KernelTaps& taps,
              int64_t group, int64_t block, float* scratch)
      : plan_(plan),
        call_(call),
        s_(call.shape),
        taps_(taps),
        gemm_(gemm_kernels(plan.isa)),
        kernels_(conv2d_kernels(plan.isa)),
        layout_(scratch_layout(plan, call.shape)),
        group_(group),
        c0_(block * plan.block_channels),
        channels_(std::min(plan.block_channels, call.shape.group_in_channels() - c0_)),
        weight_rows_(call.shape.taps() * channels_),
        has_ones_(call.grad_bias != nullptr && block == 0),
        panel_(scratch),
        transposed_(panel_ + layout_.panel()),
        sums_(transposed_ + kChunkPixels * wide_columns(gemm_)) {}

  void accumulate(int64_t slice) {
    const int64_t pixels = s_.batch * s_.out_pixels();
    const int64_t begin = pixels * slice / plan_.pixel_slices;
    const int64_t end = pixels * (slice + 1) / plan_.pixel_slices;
    if (has_ones_) std::fill_n(panel_ + weight_rows_ * kPanelPitch, kChunkPixels, 1.0f);
    if (begin == end) std::memset(sums_, 0, sizeof(float) * layout_.sums());
    for (int64_t first = begin; first < end; first += kChunkPixels) {
      const int64_t count = std::min(kChunkPixels, end - first);
      pack_input(first, count);
      for (int64_t o = 0; o < s_.group_out_channels();) {
        const int64_t left = s_.group_out_channels() - o;
        const bool wide = left > gemm_.lanes;
        multiply(first, count, o, std::min(left, wide ? wide_columns(gemm_) : gemm_.lanes),
                 wide ? gemm_.panel_wide : gemm_.panel_narrow, first > begin);
        o += wide ? wide_columns(gemm_) : gemm_.lanes;
      }
    }
  }

  // Adds the sums of `other` (same block, next slice).
  void add(const WeightBlock& other) {
    for (int64_t i = 0; i < layout_.sums(); ++i) sums_[i] += other.sums_[i];
  }

  void store() const {
    const int64_t taps = s_.taps();
    const int64_t first_out = group_ * s_.group_out_channels();
    const int64_t out_stride = s_.group_in_channels() * taps;
    kernels_.copy_block({weight_rows_, s_.group_out_channels(), sums_, layout_.out_pitch, 1,
                         call_.grad_weight + first_out * out_stride + c0_ * taps, 1, out_stride});
    if (has_ones_)
      std::copy_n(sums_ + weight_rows_ * layout_.out_pitch, s_.group_out_channels(),
                  call_.grad_bias + first_out);
  }

 private:
  void pack_input(int64_t first, int64_t count) {
    const Strides4& in = call_.input_strides;
    PixelRun runs[kChunkPixels];
    int64_t run_count = 0;
    for_each_pixel_run(
        first, count, s_.out_height, s_.out_width,
        [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t) {
          runs[run_count++] = {
              length,
              call_.input + n * in.batch + (group_ * s_.group_in_channels() + c0_) * in.channel,
              i * s_.stride_height, j * s_.stride_width};
        });
    kernels_.pack_panel({runs, run_count, taps_.rows.data(), s_.kernel_height, taps_.columns.data(),
                         s_.kernel_width, channels_, in.channel, in.row, in.column, s_.stride_width,
                         s_.in_height, s_.in_width, panel_, kPanelPitch});
  }

  void multiply(int64_t first, int64_t count, int64_t o, int64_t columns, const GemmFamily& family,
                bool accumulate) {
    const Strides4& go = call_.grad_output_strides;
    const int64_t pitch = family.vectors * gemm_.lanes;
    const float* source = call_.grad_output + (group_ * s_.group_out_channels() + o) * go.channel;
    // Columns past the last channel are multiplied but never stored; zero keeps them harmless.
    if (columns < pitch) std::memset(transposed_, 0, sizeof(float) * count * pitch);
    // Rows that follow each other without a gap are one long row.
    const bool dense = go.row == s_.out_width * go.column;
    for_each_pixel_run(
        first, count, dense ? 1 : s_.out_height, dense ? s_.out_pixels() : s_.out_width,
        [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t offset) {
          kernels_.copy_block({columns, length, source + n * go.batch + i * go.row + j * go.column,
                               go.channel, go.column, transposed_ + offset * pitch, 1, pitch});
        });
    const int64_t rows = weight_rows_ + (has_ones_ ? 1 : 0);
    const int64_t row_blocks = ceil_div(rows, family.max_rows);
    const int64_t block_rows = ceil_div(rows, row_blocks);
    for (int64_t k = 0; k < rows; k += block_rows) {
      const int64_t height = std::min(block_rows, rows - k);
      family.by_rows[height - 1]({count, panel_ + k * kPanelPitch, transposed_, pitch,
                                  sums_ + k * layout_.out_pitch + o, layout_.out_pitch, columns,
                                  nullptr, accumulate});
    }
  }

  const WeightPlan& plan_;
  const Conv2dGradWeight& call_;
  const Conv2dShape& s_;
  const KernelTaps& taps_;
  const GemmKernels& gemm_;
  const Conv2dKernels& kernels_;
  const ScratchLayout layout_;
  const int64_t group_;
  const int64_t c0_;
  const int64_t channels_;
  const int64_t weight_rows_;
  const bool has_ones_;
  float* panel_;
  float* transposed_;
  float* sums_;
};

WeightPlan plan_blocks(const Conv2dShape& s, Isa isa, int64_t threads) {
  WeightPlan plan{isa, 1, 1, 1};
  const int64_t most = std::clamp<int64_t>(kMaxRows / s.taps(), 1, s.group_in_channels());
  plan.block_channels = most;
  // Blocks of input channels need no final addition, so they are the first choice for the split
  // over threads; slices of pixels follow when there are too few channels.
  const int64_t wanted = ceil_div(threads, s.groups);
  if (s.group_in_channels() >= 4 * wanted)
    plan.block_channels = std::min(most, ceil_div(s.group_in_channels(), wanted));
  int64_t blocks = ceil_div(s.group_in_channels(), plan.block_channels);
  // A last round in which some threads have nothing to do would cost as much as a full one.
  if (blocks > wanted) blocks = round_up(blocks, wanted);
  plan.block_channels = ceil_div(s.group_in_channels(), blocks);
  blocks = ceil_div(s.group_in_channels(), plan.block_channels);
  const int64_t chunks = ceil_div(s.batch * s.out_pixels(), kChunkPixels);
  plan.pixel_slices =
      std::clamp<int64_t>(ceil_div(wanted, blocks), 1, std::max<int64_t>(chunks, 1));
  plan.slots = std::clamp<int64_t>(threads, 1, weight_units(plan, s).count);
  return plan;
}

}  // namespace

int64_t weight_panel_scratch_floats(const Conv2dShape& s, Isa isa, int64_t threads) {
  const WeightPlan plan = plan_blocks(s, isa, threads);
  return weight_units(plan, s).pieces() * task_floats(plan, s);
}

void grad_weight_panel(const Conv2dPlan& call_plan, const Conv2dGradWeight& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const WeightPlan plan = plan_blocks(s, call_plan.isa, call_plan.threads);
  KernelTaps taps;
  for (int64_t r = 0; r < s.kernel_height; ++r)
    taps.rows.push_back(r * s.dilation_height - s.padding_height);
  for (int64_t q = 0; q < s.kernel_width; ++q)
    taps.columns.push_back(q * s.dilation_width - s.padding_width);

  const int64_t blocks = channel_blocks(plan, s);
  const int64_t floats = task_floats(plan, s);
  run_weight_units(weight_units(plan, s), [&](int64_t block, int64_t piece) {
    return WeightBlock(plan, call, taps, block / blocks, block % blocks, scratch + piece * floats);
  });
}

}  // namespace fastconv::cpu
