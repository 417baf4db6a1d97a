// SPDX-License-Identifier: MIT
// Per strip of grid rows: copy the input rows it needs, zero-padded, then run tiles that read the
// copy in place. Columns are split by their remainder modulo the stride while they are copied, so
// that neighbouring grid points are neighbours in memory whatever the stride:
//
//   strip[channel][row][phase][column]    input column = (column * step_width + phase) + left edge
#include "cpu/conv2d/conv2d_direct.h"

#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kStripFloats = 40 * 1024;  // copies up to this size stay in L2
constexpr int64_t kSlackFloats = 64;         // the last vector of a strip may read past its end

// Sizes of the copied strip of `grid_rows` rows.
struct Strip {
  Strip(const GatherConv& conv, int64_t grid_rows) {
    const auto [top, bottom] = std::minmax_element(conv.tap_rows.begin(), conv.tap_rows.end());
    const auto [left, right] =
        std::minmax_element(conv.tap_columns.begin(), conv.tap_columns.end());
    top_row = *top;
    left_column = *left;
    rows = (grid_rows - 1) * conv.step_height + *bottom - *top + 1;
    phase_pitch = conv.grid_width + (*right - *left) / conv.step_width;
    row_pitch = phase_pitch * conv.step_width;
    channel_pitch = rows * row_pitch;
  }

  int64_t top_row;      // input row of strip row 0 relative to the first grid row's
  int64_t left_column;  // input column of strip column 0
  int64_t rows;
  int64_t phase_pitch;
  int64_t row_pitch;
  int64_t channel_pitch;
};

const DirectFamily& tile_family(const GatherPlan& plan) {
  const Conv2dKernels& kernels = conv2d_kernels(plan.isa);
  return plan.wide_tiles ? kernels.direct_wide : kernels.direct_tall;
}

// One slot's work: strips of one image and group at a time.
class DirectStrip {
 public:
  DirectStrip(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* scratch)
      : plan_(plan),
        conv_(conv),
        strip_(conv, plan.strip_rows),
        kernels_(conv2d_kernels(plan.isa)),
        family_(tile_family(plan)),
        lanes_(gemm_kernels(plan.isa).lanes),
        in_place_(conv.output_strides.column == 1),
        weights_(weights),
        copy_(scratch),
        output_block_(copy_ + conv.in_channels * strip_.channel_pitch + kSlackFloats) {
    for (int64_t c = 0; c < plan.block_channels; ++c)
      for (int64_t row : conv.tap_rows)
        for (int64_t column : conv.tap_columns) {
          const int64_t shift = column - strip_.left_column;
          offsets_.push_back(c * strip_.channel_pitch + (row - strip_.top_row) * strip_.row_pitch +
                             shift % conv.step_width * strip_.phase_pitch +
                             shift / conv.step_width);
        }
    runs_.resize(strip_.rows * conv.step_width);
    // Vectors that start in the last row may read, but never keep, what follows the copy.
    std::memset(copy_ + conv.in_channels * strip_.channel_pitch, 0, sizeof(float) * kSlackFloats);
  }

  // Computes grid rows [first_row, first_row + rows) of one image and group.
  void run(int64_t image, int64_t group, int64_t first_row, int64_t rows) {
    copy_input(image, group, first_row, rows);
    const Strides4& out = conv_.output_strides;
    float* plane = conv_.output + image * out.batch + group * conv_.out_channels * out.channel +
                   first_row * out.row;
    const int64_t pitch = in_place_ ? out.channel : plan_.strip_rows * conv_.grid_width;
    const int64_t row_pitch = in_place_ ? out.row : conv_.grid_width;
    for (int64_t c0 = 0; c0 < conv_.in_channels; c0 += plan_.block_channels)
      multiply(group, c0, rows, in_place_ ? plane : output_block_, pitch, row_pitch);
    if (in_place_) return;
    for (int64_t i = 0; i < rows; ++i)
      kernels_.copy_block({conv_.out_channels, conv_.grid_width, output_block_ + i * row_pitch,
                           pitch, 1, plane + i * out.row, out.channel, out.column});
  }

 private:
  void copy_input(int64_t image, int64_t group, int64_t first_row, int64_t rows) {
    const Strides4& in = conv_.input_strides;
    const int64_t used_rows = (rows - 1) * conv_.step_height + strip_.rows -
                              (plan_.strip_rows - 1) * conv_.step_height;
    const float* source =
        conv_.input + image * in.batch + group * conv_.in_channels * in.channel;
    int64_t count = 0;
    for (int64_t r = 0; r < used_rows; ++r)
      for (int64_t phase = 0; phase < conv_.step_width; ++phase)
        runs_[count++] = {strip_.phase_pitch, source,
                          first_row * conv_.step_height + strip_.top_row + r,
                          strip_.left_column + phase};
    const int64_t here = 0;
    kernels_.pack_panel({runs_.data(), count, &here, 1, &here, 1, conv_.in_channels, in.channel,
                         in.row, in.column, conv_.step_width, conv_.in_height, conv_.in_width,
                         copy_, strip_.channel_pitch});
  }

  // Adds the input channels from c0 on to the `rows` grid rows of every output channel.
  void multiply(int64_t group, int64_t c0, int64_t rows, float* output, int64_t pitch,
                int64_t row_pitch) const {
    const int64_t taps = conv_.taps();
    const int64_t channels = std::min(plan_.block_channels, conv_.in_channels - c0);
    const float* weights = weights_ + (group * conv_.in_channels + c0) * conv_.out_channels * taps;
    const float* copy = copy_ + c0 * strip_.channel_pitch;
    const int64_t row_vectors = ceil_div(conv_.grid_width, lanes_);
    const int64_t vectors = rows * row_vectors;
    for (int64_t o = 0; o < conv_.out_channels; o += plan_.block_rows) {
      const int64_t height = std::min(plan_.block_rows, conv_.out_channels - o);
      DirectTile tile{};
      tile.depth = channels * taps;
      tile.offsets = offsets_.data();
      tile.a = weights + o * tile.depth;
      tile.c_pitch = pitch;
      tile.row_init = conv_.bias ? conv_.bias + group * conv_.out_channels + o : nullptr;
      tile.accumulate = c0 > 0;
      for (int64_t first = 0; first < vectors; first += family_.vectors) {
        for (int64_t v = 0; v < family_.vectors; ++v) {
          // Past the last vector the first one is computed again, but not stored.
          const bool exists = first + v < vectors;
          const int64_t i = exists ? (first + v) / row_vectors : 0;
          const int64_t j = exists ? (first + v) % row_vectors * lanes_ : 0;
          tile.b[v] = copy + i * conv_.step_height * strip_.row_pitch + j;
          tile.c[v] = output + o * pitch + i * row_pitch + j;
          tile.lanes[v] = exists ? std::min(lanes_, conv_.grid_width - j) : 0;
        }
        family_.by_rows[height - 1](tile);
      }
    }
  }

  const GatherPlan& plan_;
  const GatherConv& conv_;
  const Strip strip_;
  const Conv2dKernels& kernels_;
  const DirectFamily& family_;
  const int64_t lanes_;
  const bool in_place_;
  const float* weights_;
  float* copy_;
  float* output_block_;
  std::vector<int64_t> offsets_;
  std::vector<PixelRun> runs_;
};

}  // namespace

void plan_direct(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const int64_t images = conv.batch * conv.groups;
  // Fewer images than threads: cut each image into several strips.
  const int64_t cuts = images >= threads ? 1 : ceil_div(threads, images);
  plan->strip_rows = ceil_div(conv.grid_height, cuts);
  while (plan->strip_rows > 1 &&
         conv.in_channels * Strip(conv, plan->strip_rows).channel_pitch > kStripFloats)
    plan->strip_rows = ceil_div(plan->strip_rows, 2);
  plan->slots = std::min(threads, images * ceil_div(conv.grid_height, plan->strip_rows));
}

// Per slot: the copied strip, then an output block for strips that are not stored in place.
int64_t direct_slot_floats(const GatherPlan& plan, const GatherConv& conv) {
  return round_up(conv.in_channels * Strip(conv, plan.strip_rows).channel_pitch + kSlackFloats +
                      conv.out_channels * plan.strip_rows * conv.grid_width,
                  16);
}

void run_direct(const GatherPlan& plan, const GatherConv& conv, const float* weights,
                float* slots) {
  const int64_t strips = ceil_div(conv.grid_height, plan.strip_rows);
  const int64_t units = conv.batch * conv.groups * strips;
  const int64_t slot_floats = direct_slot_floats(plan, conv);
  parallel_for(plan.slots, [&](int64_t slot) {
    DirectStrip work(plan, conv, weights, slots + slot * slot_floats);
    for (int64_t u = units * slot / plan.slots; u < units * (slot + 1) / plan.slots; ++u) {
      const int64_t first_row = u % strips * plan.strip_rows;
      work.run(u / strips / conv.groups, u / strips % conv.groups, first_row,
               std::min(plan.strip_rows, conv.grid_height - first_row));
    }
  });
}

}  // namespace fastconv::cpu
