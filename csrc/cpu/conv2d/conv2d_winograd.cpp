// SPDX-License-Identifier: MIT
// Winograd F(2x2, 3x3): 16 multiplications per input channel where the direct form takes 36. The
// error is about twice that of direct sums, within the parity rule; F(4x4, 3x3) would not be.
//
// The 2 x 2 output tiles of the whole batch are numbered flat. A block of them is transformed into
// v[coefficient][channel][tile], which stays in L2; then for each block of output channels 16 small
// matrix products on the GEMM tiles give m[coefficient][row][tile], transformed back at once.
#include "cpu/conv2d/conv2d_winograd.h"

#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kInputFloats = 128 * 1024;  // a transformed block of up to 512 KB stays in L2
constexpr int64_t kMaxBlockTiles = 8;         // GEMM tiles, each `vectors * lanes` Winograd tiles

const GemmFamily& tile_family(const GatherPlan& plan) {
  const GemmKernels& kernels = gemm_kernels(plan.isa);
  return plan.wide_tiles ? kernels.packed_wide : kernels.packed_tall;
}

int64_t tile_columns(const GatherPlan& plan) {
  return tile_family(plan).vectors * gemm_kernels(plan.isa).lanes;
}

// Winograd tiles of one block.
int64_t block_columns(const GatherPlan& plan) {
  return plan.block_tiles * tile_columns(plan);
}

int64_t tile_rows(const GatherConv& conv) {
  return ceil_div(conv.grid_height, 2);
}
int64_t row_tiles(const GatherConv& conv) {
  return ceil_div(conv.grid_width, 2);
}
int64_t total_tiles(const GatherConv& conv) {
  return conv.batch * tile_rows(conv) * row_tiles(conv);
}

// Floats from one coefficient of v to the next; one cache line more than a power of two may be, so
// that the sixteen streams the input transform writes do not compete for the same L1 sets.
int64_t coefficient_pitch(const GatherPlan& plan, const GatherConv& conv) {
  return conv.in_channels * block_columns(plan) + 16;
}

struct ScratchLayout {
  int64_t weights;  // u[group][row block][coefficient][channel][row]
  int64_t taps;     // per slot: the taps of one row block, while the weights are transformed
  int64_t v;        // per slot, the rest of them
  int64_t m;
  int64_t patch;
  int64_t output;
  int64_t slot() const { return round_up(std::max(taps, v + m + patch + output), 16); }
};

ScratchLayout scratch_layout(const GatherPlan& plan, const GatherConv& conv) {
  const int64_t columns = block_columns(plan);
  const int64_t run_tiles = std::min(columns, row_tiles(conv));
  return {round_up(kWinogradCoefficients * conv.groups * conv.out_channels * conv.in_channels, 16),
          9 * conv.in_channels * plan.block_rows,
          kWinogradCoefficients * coefficient_pitch(plan, conv),
          kWinogradCoefficients * plan.block_rows * columns,
          8 * conv.in_channels * (run_tiles + 1),
          plan.block_rows * 4 * run_tiles};
}

void transform_weights(const GatherPlan& plan, const GatherConv& conv, float* weights,
                       float* slots) {
  const ScratchLayout layout = scratch_layout(plan, conv);
  const int64_t row_blocks = ceil_div(conv.out_channels, plan.block_rows);
  const int64_t pieces = conv.groups * row_blocks;
  const Conv2dKernels& kernels = conv2d_kernels(plan.isa);
  const int64_t task_count = std::min(plan.slots, pieces);
  parallel_for(task_count, [&](int64_t task) {
    float* taps = slots + task * layout.slot();
    for (int64_t p = pieces * task / task_count; p < pieces * (task + 1) / task_count; ++p) {
      const int64_t group = p / row_blocks;
      const int64_t first_row = p % row_blocks * plan.block_rows;
      const int64_t rows = std::min(plan.block_rows, conv.out_channels - first_row);
      const float* source = conv.weight + group * conv.weight_group + first_row * conv.weight_out;
      if (conv.weight_in == 9) {
        kernels.copy_block({rows, 9 * conv.in_channels, source, conv.weight_out, 1, taps, 1, rows});
      } else {
        for (int64_t c = 0; c < conv.in_channels; ++c)
          kernels.copy_block({rows, 9, source + c * conv.weight_in, conv.weight_out, 1,
                              taps + c * 9 * rows, 1, rows});
      }
      float* u = weights +
                 kWinogradCoefficients * conv.in_channels * (group * conv.out_channels + first_row);
      winograd_kernels(plan.isa).transform_weights({taps, conv.in_channels, rows,
                                                    conv.tap_rows[0] > conv.tap_rows[1], u,
                                                    conv.in_channels * rows});
    }
  });
}

// Works on flat Winograd tiles [first, first + count) of one group.
class TileBlock {
 public:
  TileBlock(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* scratch)
      : plan_(plan),
        conv_(conv),
        layout_(scratch_layout(plan, conv)),
        gemm_(tile_family(plan)),
        kernels_(winograd_kernels(plan.isa)),
        columns_(block_columns(plan)),
        weights_(weights),
        v_(scratch),
        m_(v_ + layout_.v),
        patch_(m_ + layout_.m),
        output_(patch_ + layout_.patch) {
    // Columns past the last tile are multiplied but never stored; zero keeps them harmless.
    std::memset(v_, 0, sizeof(float) * layout_.v);
  }

  void run(int64_t group, int64_t first, int64_t count) {
    transform_input(group, first, count);
    const float* group_weights =
        weights_ + kWinogradCoefficients * group * conv_.out_channels * conv_.in_channels;
    for (int64_t o = 0; o < conv_.out_channels; o += plan_.block_rows) {
      const int64_t rows = std::min(plan_.block_rows, conv_.out_channels - o);
      const float* u = group_weights + kWinogradCoefficients * o * conv_.in_channels;
      for (int64_t k = 0; k < kWinogradCoefficients; ++k)
        multiply(u + k * conv_.in_channels * rows, v_ + k * coefficient_pitch(plan_, conv_),
                 m_ + k * rows * columns_, rows, count);
      transform_output(group, o, rows, first, count);
    }
  }

 private:
  void transform_input(int64_t group, int64_t first, int64_t count) {
    const Strides4& in = conv_.input_strides;
    const int64_t top = std::min(conv_.tap_rows[0], conv_.tap_rows[2]);
    const int64_t left = std::min(conv_.tap_columns[0], conv_.tap_columns[2]);
    const int64_t here = 0;
    for_each_pixel_run(
        first, count, tile_rows(conv_), row_tiles(conv_),
        [&](int64_t n, int64_t i, int64_t j, int64_t tiles, int64_t offset) {
          const float* image = conv_.input + n * in.batch + group * conv_.in_channels * in.channel;
          PixelRun runs[8];
          for (int64_t r = 0; r < 4; ++r)
            for (int64_t parity = 0; parity < 2; ++parity)
              runs[2 * r + parity] = {tiles + 1, image, 2 * i + top + r, 2 * j + left + parity};
          conv2d_kernels(plan_.isa).pack_panel({runs, 8, &here, 1, &here, 1, conv_.in_channels,
                                                in.channel, in.row, in.column, 2, conv_.in_height,
                                                conv_.in_width, patch_, 8 * (tiles + 1)});
          kernels_.transform_input({patch_, conv_.in_channels, tiles, v_ + offset,
                                    coefficient_pitch(plan_, conv_), columns_});
        });
  }

  // m[row][tile] = sum_c u[c][row] * v[c][tile] for one coefficient.
  void multiply(const float* u, const float* v, float* m, int64_t rows, int64_t count) const {
    for (int64_t t = 0; t < count; t += tile_columns(plan_))
      gemm_.by_rows[rows - 1]({conv_.in_channels, u, v + t, columns_, m + t, columns_,
                               tile_columns(plan_), nullptr, false});
  }

  void transform_output(int64_t group, int64_t o, int64_t rows, int64_t first, int64_t count) {
    const Strides4& out = conv_.output_strides;
    const bool in_place = out.column == 1;
    const int64_t channel = group * conv_.out_channels + o;
    for_each_pixel_run(first, count, tile_rows(conv_), row_tiles(conv_),
                       [&](int64_t n, int64_t i, int64_t j, int64_t tiles, int64_t offset) {
                         float* target = conv_.output + n * out.batch + channel * out.channel +
                                         2 * i * out.row + 2 * j * out.column;
                         const int64_t out_rows = std::min<int64_t>(2, conv_.grid_height - 2 * i);
                         const int64_t out_columns = std::min(2 * tiles, conv_.grid_width - 2 * j);
                         kernels_.transform_output(
                             {m_ + offset, rows * columns_, columns_, rows, tiles,
                              conv_.bias == nullptr ? nullptr : conv_.bias + channel,
                              in_place ? target : output_, in_place ? out.channel : 4 * tiles,
                              in_place ? out.row : 2 * tiles, out_rows, out_columns});
                         if (in_place) return;
                         for (int64_t y = 0; y < out_rows; ++y)
                           conv2d_kernels(plan_.isa).copy_block(
                               {rows, out_columns, output_ + y * 2 * tiles, 4 * tiles, 1,
                                target + y * out.row, out.channel, out.column});
                       });
  }

  const GatherPlan& plan_;
  const GatherConv& conv_;
  const ScratchLayout layout_;
  const GemmFamily& gemm_;
  const WinogradKernels& kernels_;
  const int64_t columns_;
  const float* weights_;
  float* v_;
  float* m_;
  float* patch_;
  float* output_;
};

bool is_unit_step(const std::vector<int64_t>& taps) {
  if (taps.size() != 3) return false;
  const int64_t step = taps[1] - taps[0];
  return (step == 1 || step == -1) && taps[2] - taps[1] == step;
}

}  // namespace

bool winograd_applies(const GatherConv& conv) {
  return conv.step_height == 1 && conv.step_width == 1 && conv.weight_taps == 9 &&
         is_unit_step(conv.tap_rows) && is_unit_step(conv.tap_columns) &&
         (conv.tap_rows[0] > conv.tap_rows[1]) == (conv.tap_columns[0] > conv.tap_columns[1]);
}

void plan_winograd(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const int64_t tiles = ceil_div(total_tiles(conv), tile_columns(*plan));
  const int64_t floats = kWinogradCoefficients * conv.in_channels * tile_columns(*plan);
  const int64_t fitting = std::clamp<int64_t>(kInputFloats / floats, 1, kMaxBlockTiles);
  plan->block_tiles = std::min(fitting, ceil_div(tiles, conv.groups >= threads ? 1 : threads));
  plan->slots = std::min(threads, conv.groups * ceil_div(tiles, plan->block_tiles));
}

int64_t winograd_scratch_floats(const GatherPlan& plan, const GatherConv& conv) {
  const ScratchLayout layout = scratch_layout(plan, conv);
  return layout.weights + plan.slots * layout.slot();
}

void run_winograd(const GatherPlan& plan, const GatherConv& conv, float* scratch) {
  const ScratchLayout layout = scratch_layout(plan, conv);
  float* slots = scratch + layout.weights;
  transform_weights(plan, conv, scratch, slots);
  const int64_t tiles = total_tiles(conv);
  const int64_t group_blocks = ceil_div(tiles, block_columns(plan));
  const int64_t blocks = conv.groups * group_blocks;
  parallel_for(plan.slots, [&](int64_t slot) {
    TileBlock work(plan, conv, scratch, slots + slot * layout.slot());
    for (int64_t b = blocks * slot / plan.slots; b < blocks * (slot + 1) / plan.slots; ++b) {
      const int64_t first = b % group_blocks * block_columns(plan);
      work.run(b / group_blocks, first, std::min(block_columns(plan), tiles - first));
    }
  });
}

}  // namespace fastconv::cpu
