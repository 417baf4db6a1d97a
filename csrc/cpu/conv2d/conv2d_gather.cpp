// SPDX-License-Identifier: MIT
// Choice of algorithm, blocking, and what both algorithms share: the packed weights.
#include "cpu/conv2d/conv2d_gather.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_image_vectors.h"
#include "cpu/conv2d/conv2d_panel.h"
#include "cpu/conv2d/conv2d_pixel_rows.h"
#include "cpu/conv2d/conv2d_rows.h"
#include "cpu/conv2d/conv2d_shifted.h"
#include "cpu/conv2d/conv2d_strip.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_winograd.h"
#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

// Depth of one pass: a 14 x 512 block of weights is 28 KB and stays in L1.
constexpr int64_t kMaxDepth = 512;
// Weights beyond this many floats leave L2, and channel_vectors reads them once per tile.
constexpr int64_t kMaxChannelVectorWeights = 160 * 1024;

constexpr int64_t kMaxStripStep = 4;

bool is_winograd(const GatherPlan& plan) {
  return plan.algorithm == GatherAlgorithm::kWinograd ||
         plan.algorithm == GatherAlgorithm::kWinograd4x4;
}

// The estimates below count cycles per vector of pixels, kernel tap and input channel, on a core
// that starts two multiply-adds a cycle. The constants were fitted to single-thread timings of the
// shapes in benchmarks/shapes; they only have to rank the algorithms.
struct Costs {
  double lanes;
  double multiply;  // no waste at all
  double pack;      // moving one vector of pixels into a panel
  double copy;      // moving it into a strip, shared by all taps
};

Costs estimate_costs(const GatherConv& conv, int64_t lanes) {
  const bool transposed = conv.input_strides.column != 1;  // channels_last input
  const double move = transposed ? 10.0 : 2.5;
  // Rows shorter than a vector are moved in as many steps as longer ones.
  const double row_waste = 1.0 + static_cast<double>(lanes) / conv.grid_width;
  return {static_cast<double>(lanes), 0.5 * static_cast<double>(conv.out_channels),
          move * row_waste,
          move * row_waste * static_cast<double>(conv.step_height * conv.step_width) /
              static_cast<double>(conv.taps())};
}

// Tiles that straddle images or rows, and results whose columns are not neighbours, are stored
// through a block.
double panel_cost(const GatherConv& conv, const Costs& costs) {
  const double depth = static_cast<double>(conv.in_channels * conv.taps());
  constexpr int64_t kManyPixels = 128;
  const bool many_pixels = conv.grid_height * conv.grid_width >= kManyPixels;
  const bool in_place = conv.output_strides.column == 1 && many_pixels;
  const double unpack = (in_place ? 1.0 : 8.0) * static_cast<double>(conv.out_channels) / depth;
  // Flat images are read in place by the first tile, while it multiplies.
  if (many_pixels && panel_reads_flat_images(conv))
    return costs.multiply + (in_place ? 0.0 : unpack);
  return costs.multiply * 1.05 + costs.pack + unpack;
}

double pixel_vector_cost(const GatherConv& conv, const Costs& costs) {
  const double width = static_cast<double>(conv.grid_width);
  const double depth = static_cast<double>(conv.in_channels * conv.taps());
  const double lane_waste = costs.lanes * std::ceil(width / costs.lanes) / width;
  const bool in_place = conv.output_strides.column == 1;
  const double unpack = in_place ? 0.0 : 5.0 * static_cast<double>(conv.out_channels) / depth;
  // Vectors that straddle cache lines, as most do, are loaded more slowly than a few rows multiply.
  constexpr int64_t kFewRows = 6;
  double multiply = costs.multiply;
  if (conv.out_channels <= kFewRows)
    multiply = std::max(multiply, 2.4 * costs.lanes / 16.0 + 0.7 * costs.multiply);
  return multiply * lane_waste + costs.copy + unpack;
}

// Also finds the best tile width.
double channel_vector_cost(const GatherConv& conv, const Costs& costs,
                           const ChannelFamily* families, int64_t* tile_width) {
  const double width = static_cast<double>(conv.grid_width);
  const double depth = static_cast<double>(conv.in_channels * conv.taps());
  const double channel_waste =
      costs.lanes * std::ceil(conv.out_channels / costs.lanes) / conv.out_channels;
  const bool in_place = conv.output_strides.channel == 1;
  const double unpack = in_place ? 0.0 : 5.0 * static_cast<double>(conv.out_channels) / depth;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kChannelWidths; ++i) {
    const ChannelFamily& family = families[i];
    if (conv.grid_width < family.columns) continue;
    const double tile_waste = family.columns * std::ceil(width / family.columns) / width;
    const int64_t lines = std::min(family.max_lines, conv.grid_height);
    // Two multiply-adds a cycle with a latency of four take eight accumulators; loads for one
    // vector of channels come as fast as multiply-adds, hence a small toll on narrow tiles.
    const double accumulators = static_cast<double>(lines * family.columns * family.vectors);
    const double stall = std::max(1.0, 8.0 / accumulators) * (family.vectors == 1 ? 1.25 : 1.0);
    const double cost = costs.multiply * channel_waste * tile_waste * stall + costs.copy + unpack;
    if (cost < best) {
      best = cost;
      *tile_width = i;
    }
  }
  return best;
}

// Share of the multiplications that tiles of one grid row do; the other kernel rows lie outside.
double inside_share(const GatherConv& conv) {
  int64_t inside = 0;
  for (int64_t tap_row : conv.tap_rows)
    for (int64_t i = 0; i < conv.grid_height; ++i) {
      const int64_t row = i * conv.step_height + tap_row;
      inside += row >= 0 && row < conv.in_height ? 1 : 0;
    }
  return static_cast<double>(inside) /
         static_cast<double>(conv.grid_height * static_cast<int64_t>(conv.tap_rows.size()));
}

// No lane is lost but to the number of images; input and output are transposed. Images whose
// distance is a multiple of the first cache's sets all compete for the same ones.
double image_vector_cost(const GatherConv& conv, const Costs& costs, bool wide_tiles) {
  constexpr int64_t kSetFloats = 1024;
  const double taps = static_cast<double>(conv.taps());
  const double depth = static_cast<double>(conv.in_channels) * taps;
  const double out = static_cast<double>(conv.out_channels);
  const double stall = std::max(1.0, 8.0 / (out * (wide_tiles ? 4.0 : 2.0)));
  const double multiply = costs.multiply * inside_share(conv) * stall * 1.1;
  const double steps = static_cast<double>(conv.step_height * conv.step_width);
  // Runs of fewer images than lanes are transposed in as many steps as longer ones.
  const double runs = std::max(1.0, costs.lanes / static_cast<double>(conv.batch));
  const double copy = 5.0 * runs * steps / taps;
  const double store = conv.output_strides.batch % kSetFloats == 0 ? 17.0 : 5.0;
  const double fill = image_vectors_fill(conv, static_cast<int64_t>(costs.lanes));
  return multiply / fill + copy + store * runs * out / depth;
}

// Every product is stored once and read once, by a vector of grid points.
double shifted_cost(const GatherConv& conv, const Costs& costs) {
  const double width = static_cast<double>(conv.grid_width);
  const double depth = static_cast<double>(conv.in_channels * conv.taps());
  const double out = static_cast<double>(conv.out_channels);
  const double lane_waste = costs.lanes * std::ceil(width / costs.lanes) / width;
  const double copy = (shifted_in_place(conv) ? 1.5 : 8.0) / static_cast<double>(conv.taps());
  const double sums = (1.0 + 2.0 * lane_waste) * out / static_cast<double>(conv.in_channels);
  const double unpack = conv.output_strides.column == 1 ? 0.0 : 5.0 * out / depth;
  return (costs.multiply * 1.05 + copy) * shifted_work(conv) + sums + unpack;
}

double rows_cost(const GatherConv& conv, const Costs& costs) {
  const double taps = static_cast<double>(conv.taps());
  const double depth = static_cast<double>(conv.in_channels) * taps;
  const double channels = static_cast<double>(conv.out_channels);
  const double channel_waste = costs.lanes * std::ceil(channels / costs.lanes) / channels;
  // Every pixel and tap is located, the more often the fewer floats it has.
  const double columns = static_cast<double>(conv.tap_columns.size());
  const bool folds = folding_pays(conv.in_channels, static_cast<int64_t>(columns));
  const double floats = static_cast<double>(conv.in_channels) * (folds ? columns : 1.0);
  constexpr int64_t kWideRow = 10;  // narrower ones share a tile
  const double inside = conv.grid_width < kWideRow ? 1.0 : inside_share(conv);
  const double multiply = costs.multiply * channel_waste * inside * 1.03 +
                          (4.0 * costs.lanes + 0.25 * channels) / floats;
  const double steps = static_cast<double>(conv.step_height * conv.step_width);
  // Most of what is transposed goes unused when single taps skip pixels.
  const bool skips_pixels = conv.taps() == 1 && steps > 1.0;
  const double copy =
      conv.input_strides.channel == 1 ? 0.0 : (skips_pixels ? 10.0 : 5.0) * steps / taps;
  const double unpack = conv.output_strides.channel == 1 ? 0.0 : 5.0 * channels / depth;
  return multiply + copy + unpack;
}

// Whole tiles, and the three transforms: those of the input and the output are shared by all output
// and all input channels; the weights' by all tiles.
double winograd_cost(const GatherConv& conv, const Costs& costs, const WinogradKernels& form) {
  const double tile = static_cast<double>(form.tile);
  const double coefficients = static_cast<double>(form.coefficients);
  const double in = static_cast<double>(conv.in_channels);
  const double out = static_cast<double>(conv.out_channels);
  const double tile_rows = std::ceil(conv.grid_height / tile);
  const double row_tiles = std::ceil(conv.grid_width / tile);
  const double tile_waste =
      tile * tile * tile_rows * row_tiles / static_cast<double>(conv.grid_height * conv.grid_width);
  const double channel_waste = costs.lanes * std::ceil(out / costs.lanes) / out;
  // Cycles per `lanes` tiles of 2 x 2; a transposition moves four vectors of pixels.
  const double scale = coefficients / 16.0;
  const double in_cycles = scale * (conv.input_strides.channel == 1 ? 35.0 : 60.0);
  const double out_cycles = scale * (conv.output_strides.channel == 1 ? 30.0 : 55.0);
  // To find the pixels of a tile, of which groups use some channels.
  const double tile_cycles = scale * (conv.groups > 1 ? 300.0 : 100.0);
  // Per vector of weights; many more when the transformed ones leave the cache, which they share
  // with larger blocks of the input where tiles are 4 x 4. So do the products.
  constexpr int64_t kCachedWeights = 4 * 1024 * 1024;
  const bool large_tiles = form.tile > 2;
  const int64_t weights = form.coefficients * conv.in_channels * conv.out_channels;
  double weight_cycles = 60.0;
  if (large_tiles && weights > kCachedWeights / 4) weight_cycles = 460.0;
  if (weights > kCachedWeights) weight_cycles = 1000.0;
  const double product = large_tiles ? 1.13 + 0.0006 * std::max(0.0, in - 128.0) : 1.08;
  const double tiles = conv.batch * tile_rows * row_tiles;
  const double multiply =
      (coefficients * costs.multiply * in * product + scale * 24.0 * out) * channel_waste;
  const double in_vectors = costs.lanes * std::ceil(in / costs.lanes);
  const double transforms =
      in_cycles * in_vectors + out_cycles * out * channel_waste + tile_cycles * costs.lanes;
  return (multiply + transforms + scale * weight_cycles * in * out / tiles) * tile_waste /
         (tile * tile * 9.0 * in);
}

// The algorithm with the least estimated cost among those that can serve the gather, or the forced
// one.
void choose_algorithm(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const int64_t lanes = gemm_kernels(plan->isa).lanes;
  const Conv2dKernels& kernels = conv2d_kernels(plan->isa);
  const Costs costs = estimate_costs(conv, lanes);
  double best = std::numeric_limits<double>::infinity();
  plan->possible = false;
  const auto consider = [&](GatherAlgorithm algorithm, double cost) {
    if (cost >= best || is_other(conv.forced, gather_algorithm_name(algorithm))) return;
    best = cost;
    plan->algorithm = algorithm;
    plan->possible = true;
  };
  consider(GatherAlgorithm::kPanel, panel_cost(conv, costs));
  consider(GatherAlgorithm::kRows, rows_cost(conv, costs));
  if (shifted_applies(conv)) consider(GatherAlgorithm::kShifted, shifted_cost(conv, costs));
  // A copied strip holds all columns between the taps: with a wide stride most would go unused.
  if (conv.step_width > kMaxStripStep || conv.step_height > kMaxStripStep) return;
  consider(GatherAlgorithm::kPixelVectors, pixel_vector_cost(conv, costs));
  if (image_vectors_applies(conv)) {
    // Threads that share images write to the same lines, and read what others have in their caches.
    const double sharing = conv.batch * conv.groups < threads * lanes ? 1.5 : 1.0;
    consider(GatherAlgorithm::kImageVectors,
             sharing * image_vector_cost(conv, costs, plan->wide_tiles));
  }
  if (winograd_applies(conv)) {
    consider(GatherAlgorithm::kWinograd,
             winograd_cost(conv, costs, winograd_kernels(plan->isa, 2)));
    consider(GatherAlgorithm::kWinograd4x4,
             winograd_cost(conv, costs, winograd_kernels(plan->isa, 4)));
  }
  if (conv.weights() / conv.groups > kMaxChannelVectorWeights) return;
  const ChannelFamily* families =
      conv.out_channels > lanes ? kernels.channel_wide : kernels.channel_narrow;
  consider(GatherAlgorithm::kChannelVectors,
           channel_vector_cost(conv, costs, families, &plan->tile_width));
}

// Packs rows [first_row, first_row + rows) of the channels [c0, c0 + channels) of one group in the
// order in which the tiles consume them: target[k * rows + row], where k runs over (channel, tap)
// or, for pixel_vectors and image_vectors, over (kernel row, channel, kernel column).
void pack_weight_piece(const GatherPlan& plan, const GatherConv& conv, int64_t group, int64_t c0,
                       int64_t channels, int64_t first_row, int64_t rows, float* target) {
  const Conv2dKernels& kernels = conv2d_kernels(plan.isa);
  const int64_t taps = conv.taps();
  const int64_t kernel_width = static_cast<int64_t>(conv.weight_columns.size());
  const float* source =
      conv.weight + group * conv.weight_group + first_row * conv.weight_out + c0 * conv.weight_in;
  // A whole kernel lies contiguous when every tap takes part: then the packing is a transposition,
  // of all channels at once where those are contiguous too.
  const bool whole_kernel = conv.weight_taps == taps;
  const bool row_order = plan.algorithm == GatherAlgorithm::kPixelVectors ||
                         plan.algorithm == GatherAlgorithm::kImageVectors;
  if (conv.weight_tap != 1) {
    // Every tap is a matrix of its own.
    const int64_t step = row_order ? kernel_width : taps;  // from channel to channel
    for (size_t r = 0; r < conv.weight_rows.size(); ++r)
      for (int64_t q = 0; q < kernel_width; ++q) {
        const int64_t tap = conv.weight_rows[r] + conv.weight_columns[q];
        const int64_t row = static_cast<int64_t>(r) * kernel_width * (row_order ? channels : 1);
        kernels.copy_block({rows, channels, source + tap * conv.weight_tap, conv.weight_out,
                            conv.weight_in, target + (row + q) * rows, 1, step * rows});
      }
    return;
  }
  if (whole_kernel && !row_order && conv.weight_in == taps) {
    kernels.copy_block({rows, channels * taps, source, conv.weight_out, 1, target, 1, rows});
    return;
  }
  const auto pack = [&](const float* piece, int64_t first, int64_t count) {
    if (whole_kernel) {
      kernels.copy_block({rows, count, piece + first, conv.weight_out, 1, target, 1, rows});
      target += count * rows;
      return;
    }
    for (int64_t q : conv.weight_columns)
      for (int64_t i = 0; i < rows; ++i) *target++ = piece[i * conv.weight_out + first + q];
  };
  if (row_order) {
    for (int64_t r : conv.weight_rows)
      for (int64_t c = 0; c < channels; ++c) pack(source + c * conv.weight_in, r, kernel_width);
    return;
  }
  for (int64_t c = 0; c < channels; ++c, source += conv.weight_in) {
    if (whole_kernel) {
      pack(source, 0, taps);
    } else {
      for (int64_t r : conv.weight_rows) pack(source, r, kernel_width);
    }
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

// The packed weights, and what channel_vectors may read past them.
int64_t packed_weight_floats(const GatherConv& conv) {
  return round_up(conv.weights(), 16) + 32;
}

}  // namespace

const char* gather_algorithm_name(GatherAlgorithm algorithm) {
  switch (algorithm) {
    case GatherAlgorithm::kPixelVectors:
      return "pixel_vectors";
    case GatherAlgorithm::kChannelVectors:
      return "channel_vectors";
    case GatherAlgorithm::kImageVectors:
      return "image_vectors";
    case GatherAlgorithm::kRows:
      return "rows";
    case GatherAlgorithm::kShifted:
      return "shifted";
    case GatherAlgorithm::kWinograd:
      return "winograd";
    case GatherAlgorithm::kWinograd4x4:
      return "winograd_4x4";
    case GatherAlgorithm::kPanel:
      break;
  }
  return "panel";
}

GatherPlan plan_gather(const GatherConv& conv, Isa isa, int64_t threads) {
  const GemmKernels& kernels = gemm_kernels(isa);
  GatherPlan plan{};
  plan.isa = isa;
  plan.wide_tiles = conv.out_channels <= kernels.packed_wide.max_rows;
  choose_algorithm(conv, threads, &plan);
  plan.block_rows = strip_block_rows(plan, conv.out_channels);
  plan.block_channels = conv.in_channels;
  if (plan.algorithm == GatherAlgorithm::kPanel) {
    const int64_t most = std::clamp<int64_t>(kMaxDepth / conv.taps(), 1, conv.in_channels);
    plan.block_channels = ceil_div(conv.in_channels, ceil_div(conv.in_channels, most));
  }
  if (plan.algorithm == GatherAlgorithm::kPanel) {
    plan_panel(conv, threads, &plan);
  } else if (plan.algorithm == GatherAlgorithm::kRows) {
    plan_rows(conv, threads, &plan);
  } else if (plan.algorithm == GatherAlgorithm::kShifted) {
    plan_shifted(conv, threads, &plan);
  } else if (is_winograd(plan)) {
    plan_winograd(conv, threads, &plan);
  } else if (plan.algorithm == GatherAlgorithm::kImageVectors) {
    plan_image_vectors(conv, threads, &plan);
  } else {
    plan_strip(conv, threads, &plan);
  }
  return plan;
}

int64_t gather_scratch_floats(const GatherPlan& plan, const GatherConv& conv) {
  if (plan.algorithm == GatherAlgorithm::kRows) return rows_scratch_floats(plan, conv);
  if (plan.algorithm == GatherAlgorithm::kShifted) return shifted_scratch_floats(plan, conv);
  if (is_winograd(plan)) return winograd_scratch_floats(plan, conv);
  const int64_t slot_floats =
      plan.algorithm == GatherAlgorithm::kPanel          ? panel_slot_floats(plan, conv)
      : plan.algorithm == GatherAlgorithm::kImageVectors ? image_vectors_slot_floats(plan, conv)
                                                         : strip_slot_floats(plan, conv);
  return packed_weight_floats(conv) + plan.slots * slot_floats;
}

void run_gather(const GatherPlan& plan, const GatherConv& conv, float* scratch) {
  if (plan.algorithm == GatherAlgorithm::kRows) {
    run_rows(plan, conv, scratch);
    return;
  }
  if (plan.algorithm == GatherAlgorithm::kShifted) {
    run_shifted(plan, conv, scratch);
    return;
  }
  if (is_winograd(plan)) {
    run_winograd(plan, conv, scratch);
    return;
  }
  pack_weights(plan, conv, scratch);
  float* slots = scratch + packed_weight_floats(conv);
  if (plan.algorithm == GatherAlgorithm::kPanel) {
    run_panel(plan, conv, scratch, slots);
  } else if (plan.algorithm == GatherAlgorithm::kImageVectors) {
    run_image_vectors(plan, conv, scratch, slots);
  } else {
    run_strip(plan, conv, scratch, slots);
  }
}

}  // namespace fastconv::cpu
