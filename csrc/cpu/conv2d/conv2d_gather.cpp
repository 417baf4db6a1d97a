// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_gather.h"

#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Depth of one pass over a panel: a 14 x 512 block of weights is 28 KB and stays in L1.
constexpr int64_t kMaxDepth = 512;
// Panel blocks up to this size stay in L2 beside the weights.
constexpr int64_t kPanelFloats = 64 * 1024;
constexpr int64_t kMaxBlockTiles = 16;
constexpr int64_t kMaxTilePixels = 64;

const GemmFamily& tile_family(const Conv2dPlan& plan) {
  const GemmKernels& kernels = gemm_kernels(plan.isa);
  return plan.wide_tiles ? kernels.packed_wide : kernels.packed_tall;
}

int64_t tile_pixels(const Conv2dPlan& plan) {
  return tile_family(plan).vectors * gemm_kernels(plan.isa).lanes;
}

// Scratch layout: packed weights of all groups, then per slot a panel block and an output block.
struct ScratchLayout {
  int64_t weights;
  int64_t panel;
  int64_t output_block;
  int64_t slot() const { return panel + output_block; }
};

ScratchLayout scratch_layout(const Conv2dPlan& plan, int64_t groups, int64_t in_channels,
                             int64_t out_channels, int64_t taps) {
  const int64_t pixels = tile_pixels(plan) * plan.block_tiles;
  return {round_up(groups * out_channels * in_channels * taps, 16),
          taps * plan.block_channels * pixels, out_channels * pixels};
}

// Packs [block_channels][rows of a tile] pieces: for each group, channel block and row block
// w[t][c][row], in the order in which the tiles consume them.
void pack_weights(const Conv2dPlan& plan, const GatherConv& conv, float* packed) {
  const int64_t taps = static_cast<int64_t>(conv.taps.size());
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
        float* target = group_packed + taps * (c0 * conv.out_channels + first_row * channels);
        for (int64_t i = 0; i < rows; ++i) {
          const float* row = conv.weight + group * conv.weight_group +
                             (first_row + i) * conv.weight_out + c0 * conv.weight_in;
          for (int64_t c = 0; c < channels; ++c)
            for (int64_t t = 0; t < taps; ++t)
              target[(t * channels + c) * rows + i] = row[c * conv.weight_in + conv.weight_tap[t]];
        }
      }
    }
  });
}

// Where the tile that starts at flat pixel `first` lives in the output, if its pixels lie side by
// side there; nullptr when they must go through the output block.
float* direct_output(const GatherConv& conv, int64_t group, int64_t first, int64_t pixels) {
  const Strides4& out = conv.output_strides;
  const int64_t plane = conv.grid_height * conv.grid_width;
  const int64_t image = first / plane;
  const int64_t pixel = first % plane;
  if (out.column != 1 || out.row != conv.grid_width || pixel + pixels > plane) return nullptr;
  return conv.output + image * out.batch + group * conv.out_channels * out.channel + pixel;
}

// Works on flat pixels [first, first + count) of one group: pack, multiply, store.
class PixelBlock {
 public:
  PixelBlock(const Conv2dPlan& plan, const GatherConv& conv, int64_t group, const float* weights,
             float* scratch)
      : plan_(plan),
        conv_(conv),
        family_(tile_family(plan)),
        kernels_(conv2d_kernels(plan.isa)),
        group_(group),
        taps_(static_cast<int64_t>(conv.taps.size())),
        tile_pixels_(tile_pixels(plan)),
        weights_(weights + group * conv.out_channels * conv.in_channels * taps_),
        panel_(scratch),
        output_block_(scratch + taps_ * plan.block_channels * tile_pixels_ * plan.block_tiles) {}

  void run(int64_t first, int64_t count) {
    for (int64_t c0 = 0; c0 < conv_.in_channels; c0 += plan_.block_channels) {
      const int64_t channels = std::min(plan_.block_channels, conv_.in_channels - c0);
      for (int64_t done = 0; done < count; done += tile_pixels_)
        pack_tile(first + done, std::min(tile_pixels_, count - done), c0, channels,
                  panel_ + done * taps_ * channels);
      multiply(first, count, c0, channels);
    }
    for (int64_t done = 0; done < count; done += tile_pixels_)
      unpack_tile(first + done, std::min(tile_pixels_, count - done), output_block_ + done);
  }

 private:
  int64_t output_pitch() const { return tile_pixels_ * plan_.block_tiles; }

  void pack_tile(int64_t first, int64_t pixels, int64_t c0, int64_t channels, float* panel) const {
    const Strides4& in = conv_.input_strides;
    PixelRun runs[kMaxTilePixels];
    int64_t run_count = 0;
    for_each_pixel_run(first, pixels, conv_.grid_height, conv_.grid_width,
                       [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t) {
                         runs[run_count++] = {
                             length,
                             conv_.input + n * in.batch +
                                 (group_ * conv_.in_channels + c0) * in.channel,
                             i * conv_.step_height, j * conv_.step_width};
                       });
    // Lanes past the last pixel are multiplied but never stored; zero keeps them harmless.
    if (pixels < tile_pixels_)
      std::memset(panel, 0, sizeof(float) * taps_ * channels * tile_pixels_);
    kernels_.pack_panel({runs, run_count, conv_.taps.data(), taps_, channels, in.channel, in.row,
                         in.column, conv_.step_width, conv_.in_height, conv_.in_width, panel,
                         tile_pixels_});
  }

  void multiply(int64_t first, int64_t count, int64_t c0, int64_t channels) const {
    const int64_t depth = taps_ * channels;
    const float* block_weights = weights_ + taps_ * c0 * conv_.out_channels;
    for (int64_t row = 0; row < conv_.out_channels; row += plan_.block_rows) {
      const int64_t rows = std::min(plan_.block_rows, conv_.out_channels - row);
      const GemmTileFn multiply_tile = family_.by_rows[rows - 1];
      const float* bias =
          conv_.bias == nullptr ? nullptr : conv_.bias + group_ * conv_.out_channels + row;
      for (int64_t done = 0; done < count; done += tile_pixels_) {
        const int64_t pixels = std::min(tile_pixels_, count - done);
        float* direct = direct_output(conv_, group_, first + done, pixels);
        const int64_t c_pitch = direct ? conv_.output_strides.channel : output_pitch();
        float* c = (direct ? direct : output_block_ + done) + row * c_pitch;
        multiply_tile({depth, block_weights + row * depth, panel_ + done * depth, tile_pixels_, c,
                       c_pitch, pixels, bias, c0 > 0});
      }
    }
  }

  void unpack_tile(int64_t first, int64_t pixels, const float* block) const {
    if (direct_output(conv_, group_, first, pixels) != nullptr) return;
    const Strides4& out = conv_.output_strides;
    float* group_output = conv_.output + group_ * conv_.out_channels * out.channel;
    for_each_pixel_run(first, pixels, conv_.grid_height, conv_.grid_width,
                       [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t offset) {
                         kernels_.copy_block({conv_.out_channels, length, block + offset,
                                              output_pitch(), 1,
                                              group_output + n * out.batch + i * out.row +
                                                  j * out.column,
                                              out.channel, out.column});
                       });
  }

  const Conv2dPlan& plan_;
  const GatherConv& conv_;
  const GemmFamily& family_;
  const Conv2dKernels& kernels_;
  const int64_t group_;
  const int64_t taps_;
  const int64_t tile_pixels_;
  const float* weights_;
  float* panel_;
  float* output_block_;
};

}  // namespace

Conv2dPlan plan_gather(int64_t groups, int64_t in_channels, int64_t out_channels, int64_t taps,
                       int64_t pixels) {
  Conv2dPlan plan{};
  plan.isa = active_isa();
  const GemmKernels& kernels = gemm_kernels(plan.isa);
  plan.wide_tiles = out_channels <= kernels.packed_wide.max_rows;
  const int64_t row_blocks = ceil_div(out_channels, tile_family(plan).max_rows);
  plan.block_rows = ceil_div(out_channels, row_blocks);

  const int64_t depth_channels = std::clamp<int64_t>(kMaxDepth / taps, 1, in_channels);
  plan.block_channels = ceil_div(in_channels, ceil_div(in_channels, depth_channels));

  const int64_t multiply_adds = groups * in_channels * out_channels * taps * pixels;
  const int64_t tiles = ceil_div(pixels, tile_pixels(plan));
  const int64_t threads = worthwhile_threads(multiply_adds, 0);
  const int64_t tile_floats = taps * plan.block_channels * tile_pixels(plan);
  plan.block_tiles = std::clamp<int64_t>(kPanelFloats / tile_floats, 1, kMaxBlockTiles);
  plan.block_tiles = std::min(plan.block_tiles, ceil_div(tiles, groups >= threads ? 1 : threads));
  plan.slots = std::min(threads, groups * ceil_div(tiles, plan.block_tiles));
  plan.pixel_slices = 1;

  const ScratchLayout layout = scratch_layout(plan, groups, in_channels, out_channels, taps);
  plan.scratch_floats = layout.weights + plan.slots * layout.slot();
  return plan;
}

void run_gather(const Conv2dPlan& plan, const GatherConv& conv, float* scratch) {
  const int64_t taps = static_cast<int64_t>(conv.taps.size());
  const ScratchLayout layout =
      scratch_layout(plan, conv.groups, conv.in_channels, conv.out_channels, taps);
  float* slot_scratch = scratch + layout.weights;
  pack_weights(plan, conv, scratch);

  const int64_t pixels = conv.batch * conv.grid_height * conv.grid_width;
  const int64_t block_pixels = tile_pixels(plan) * plan.block_tiles;
  const int64_t group_blocks = ceil_div(pixels, block_pixels);
  const int64_t blocks = conv.groups * group_blocks;
  parallel_for(plan.slots, [&](int64_t slot) {
    for (int64_t b = blocks * slot / plan.slots; b < blocks * (slot + 1) / plan.slots; ++b) {
      const int64_t first = b % group_blocks * block_pixels;
      PixelBlock block(plan, conv, b / group_blocks, scratch, slot_scratch + slot * layout.slot());
      block.run(first, std::min(block_pixels, pixels - first));
    }
  });
}

}  // namespace fastconv::cpu
