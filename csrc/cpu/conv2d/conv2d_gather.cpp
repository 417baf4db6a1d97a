// SPDX-License-Identifier: MIT
// Choice of algorithm, blocking, and what both algorithms share: the packed weights.
#include "cpu/conv2d/conv2d_gather.h"

#include <algorithm>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_direct.h"
#include "cpu/conv2d/conv2d_panel.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Depth of one pass: a 14 x 512 block of weights is 28 KB and stays in L1.
constexpr int64_t kMaxDepth = 512;

// Cycles per vector of pixels, kernel tap and input channel, on a core that starts two
// multiply-adds a cycle; measured on LeNet's layers, good enough to compare the two algorithms.
GatherAlgorithm choose_gather_algorithm(const GatherConv& conv, int64_t lanes) {
  constexpr double kPackCycles = 2.5;
  const double multiply = 0.5 * static_cast<double>(conv.out_channels);
  const double width = static_cast<double>(conv.grid_width);
  // Rows shorter than a vector are packed in as many steps as longer ones.
  const double pack = kPackCycles * (1.0 + 0.5 * static_cast<double>(lanes) / width);
  const double lane_waste =
      static_cast<double>(round_up(conv.grid_width, lanes)) / static_cast<double>(conv.grid_width);
  const double copy = kPackCycles * static_cast<double>(conv.step_height * conv.step_width) /
                      static_cast<double>(conv.taps());
  const bool direct = multiply * lane_waste + copy < multiply + pack;
  return direct ? GatherAlgorithm::kDirect : GatherAlgorithm::kPanel;
}

// Packs rows [first_row, first_row + rows) of the channels [c0, c0 + channels) of one group as
// target[(c * taps + tap) * rows + row], the order in which the tiles consume them.
void pack_weight_piece(const GatherPlan& plan, const GatherConv& conv, int64_t group, int64_t c0,
                       int64_t channels, int64_t first_row, int64_t rows, float* target) {
  const int64_t taps = conv.taps();
  const float* source = conv.weight + group * conv.weight_group + first_row * conv.weight_out +
                        c0 * conv.weight_in;
  // A whole kernel lies contiguous when every tap takes part: then the packing is a transposition,
  // of all channels at once where those are contiguous too.
  const bool whole_kernel = conv.weight_taps == taps;
  if (whole_kernel && conv.weight_in == taps) {
    conv2d_kernels(plan.isa).copy_block(
        {rows, channels * taps, source, conv.weight_out, 1, target, 1, rows});
    return;
  }
  for (int64_t c = 0; c < channels; ++c, source += conv.weight_in, target += taps * rows) {
    if (whole_kernel) {
      conv2d_kernels(plan.isa).copy_block({rows, taps, source, conv.weight_out, 1, target, 1, rows});
      continue;
    }
    float* next = target;
    for (int64_t r : conv.weight_rows)
      for (int64_t q : conv.weight_columns)
        for (int64_t i = 0; i < rows; ++i) *next++ = source[i * conv.weight_out + r + q];
  }
}

void pack_weights(const GatherPlan& plan, const GatherConv& conv, float* packed) {
  const int64_t taps = conv.taps();
  const int64_t row_blocks = ceil_div(conv.out_channels, plan.block_rows);
  const int64_t pieces = conv.groups * row_blocks;
  const int64_t floats = conv.groups * conv.out_channels * conv.in_channels * taps;
  const int64_t slots = std::min(pieces, worthwhile_threads(floats, 8 * floats));
  parallel_for(slots, [&](int64_t slot) {
    for (int64_t piece = pieces * slot / slots; piece < pieces * (slot + 1) / slots; ++piece) {
      const int64_t group = piece / row_blocks;
      const int64_t first_row = piece % row_blocks * plan.block_rows;
      const int64_t rows = std::min(plan.block_rows, conv.out_channels - first_row);
      float* group_packed = packed + group * conv.out_channels * conv.in_channels * taps;
      for (int64_t c0 = 0; c0 < conv.in_channels; c0 += plan.block_channels) {
        const int64_t channels = std::min(plan.block_channels, conv.in_channels - c0);
        pack_weight_piece(plan, conv, group, c0, channels, first_row, rows,
                          group_packed + taps * (c0 * conv.out_channels + first_row * channels));
      }
    }
  });
}

}  // namespace

const char* gather_algorithm_name(GatherAlgorithm algorithm) {
  return algorithm == GatherAlgorithm::kDirect ? "direct" : "panel";
}

GatherPlan plan_gather(const GatherConv& conv, Isa isa, int64_t threads) {
  const GemmKernels& kernels = gemm_kernels(isa);
  GatherPlan plan{};
  plan.isa = isa;
  plan.algorithm = choose_gather_algorithm(conv, kernels.lanes);
  plan.wide_tiles = conv.out_channels <= kernels.packed_wide.max_rows;
  const GemmFamily& family = plan.wide_tiles ? kernels.packed_wide : kernels.packed_tall;
  const int64_t row_blocks = ceil_div(conv.out_channels, family.max_rows);
  plan.block_rows = ceil_div(conv.out_channels, row_blocks);
  const int64_t depth_channels = std::clamp<int64_t>(kMaxDepth / conv.taps(), 1, conv.in_channels);
  plan.block_channels = ceil_div(conv.in_channels, ceil_div(conv.in_channels, depth_channels));
  if (plan.algorithm == GatherAlgorithm::kDirect) {
    plan_direct(conv, threads, &plan);
  } else {
    plan_panel(conv, threads, &plan);
  }
  return plan;
}

int64_t gather_scratch_floats(const GatherPlan& plan, const GatherConv& conv) {
  const int64_t slot_floats = plan.algorithm == GatherAlgorithm::kDirect
                                  ? direct_slot_floats(plan, conv)
                                  : panel_slot_floats(plan, conv);
  return round_up(conv.weights(), 16) + plan.slots * slot_floats;
}

void run_gather(const GatherPlan& plan, const GatherConv& conv, float* scratch) {
  pack_weights(plan, conv, scratch);
  float* slots = scratch + round_up(conv.weights(), 16);
  if (plan.algorithm == GatherAlgorithm::kDirect) {
    run_direct(plan, conv, scratch, slots);
  } else {
    run_panel(plan, conv, scratch, slots);
  }
}

}  // namespace fastconv::cpu
