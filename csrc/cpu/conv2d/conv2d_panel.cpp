// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_panel.h"

#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Panel blocks up to this size stay in L2 beside the weights.
constexpr int64_t kPanelFloats = 96 * 1024;
constexpr int64_t kMaxBlockTiles = 16;
constexpr int64_t kMaxTilePixels = 64;

const GemmFamily& tile_family(const GatherPlan& plan) {
  const GemmKernels& kernels = gemm_kernels(plan.isa);
  return plan.wide_tiles ? kernels.packed_wide : kernels.packed_tall;
}

int64_t tile_pixels(const GatherPlan& plan) {
  return tile_family(plan).vectors * gemm_kernels(plan.isa).lanes;
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
  PixelBlock(const GatherPlan& plan, const GatherConv& conv, int64_t group, const float* weights,
             float* scratch)
      : plan_(plan),
        conv_(conv),
        family_(tile_family(plan)),
        kernels_(conv2d_kernels(plan.isa)),
        group_(group),
        taps_(conv.taps()),
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
                         runs[run_count++] = {length,
                                              conv_.input + n * in.batch +
                                                  (group_ * conv_.in_channels + c0) * in.channel,
                                              i * conv_.step_height, j * conv_.step_width};
                       });
    // Lanes past the last pixel are multiplied but never stored; zero keeps them harmless.
    if (pixels < tile_pixels_)
      std::memset(panel, 0, sizeof(float) * taps_ * channels * tile_pixels_);
    kernels_.pack_panel({runs, run_count, conv_.tap_rows.data(),
                         static_cast<int64_t>(conv_.tap_rows.size()), conv_.tap_columns.data(),
                         static_cast<int64_t>(conv_.tap_columns.size()), channels, in.channel,
                         in.row, in.column, conv_.step_width, conv_.in_height, conv_.in_width,
                         panel, tile_pixels_});
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
    for_each_pixel_run(
        first, pixels, conv_.grid_height, conv_.grid_width,
        [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t offset) {
          kernels_.copy_block({conv_.out_channels, length, block + offset, output_pitch(), 1,
                               group_output + n * out.batch + i * out.row + j * out.column,
                               out.channel, out.column});
        });
  }

  const GatherPlan& plan_;
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

void plan_panel(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const int64_t tiles = ceil_div(conv.pixels(), tile_pixels(*plan));
  const int64_t tile_floats = conv.taps() * plan->block_channels * tile_pixels(*plan);
  const int64_t fitting = std::clamp<int64_t>(kPanelFloats / tile_floats, 1, kMaxBlockTiles);
  const int64_t tiles_per_thread = ceil_div(tiles, conv.groups >= threads ? 1 : threads);
  plan->block_tiles = std::min(fitting, tiles_per_thread);
  plan->slots = std::min(threads, conv.groups * ceil_div(tiles, plan->block_tiles));
}

// Per slot: a panel block, then an output block for tiles that are not stored in place.
int64_t panel_slot_floats(const GatherPlan& plan, const GatherConv& conv) {
  const int64_t pixels = tile_pixels(plan) * plan.block_tiles;
  return pixels * (conv.taps() * plan.block_channels + conv.out_channels);
}

void run_panel(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* slots) {
  const int64_t pixels = conv.pixels();
  const int64_t block_pixels = tile_pixels(plan) * plan.block_tiles;
  const int64_t group_blocks = ceil_div(pixels, block_pixels);
  const int64_t blocks = conv.groups * group_blocks;
  const int64_t slot_floats = panel_slot_floats(plan, conv);
  parallel_for(plan.slots, [&](int64_t slot) {
    for (int64_t b = blocks * slot / plan.slots; b < blocks * (slot + 1) / plan.slots; ++b) {
      const int64_t first = b % group_blocks * block_pixels;
      PixelBlock block(plan, conv, b / group_blocks, weights, slots + slot * slot_floats);
      block.run(first, std::min(block_pixels, pixels - first));
    }
  });
}

}  // namespace fastconv::cpu
