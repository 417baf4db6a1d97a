// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_panel.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_prefetch.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Panel blocks up to this size stay in L2 beside the weights.
constexpr int64_t kPanelFloats = 64 * 1024;
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

// Pixels [first, first + count) of one group, and some of its input channels.
struct Stage {
  int64_t group;
  int64_t first;
  int64_t count;
  int64_t c0;
  int64_t channels;
};

// Works through stages one by one, in one slot: pack, multiply, store.
class PixelBlock {
 public:
  PixelBlock(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* scratch)
      : plan_(plan),
        conv_(conv),
        family_(tile_family(plan)),
        kernels_(conv2d_kernels(plan.isa)),
        taps_(conv.taps()),
        tile_pixels_(tile_pixels(plan)),
        flat_(panel_reads_flat_images(conv) &&
              conv.grid_height * conv.grid_width >= gemm_kernels(plan.isa).lanes),
        weights_(weights),
        panel_(scratch),
        output_block_(scratch + taps_ * plan.block_channels * tile_pixels_ * plan.block_tiles) {}

  // The input of `next` is brought near meanwhile; nullptr: there is none.
  void run(const Stage& stage, const Stage* next) {
    const auto [group, first, count, c0, channels] = stage;
    if (!flat_) {
      for (int64_t done = 0; done < count; done += tile_pixels_)
        pack_tile(group, first + done, std::min(tile_pixels_, count - done), c0, channels,
                  panel_ + done * taps_ * channels);
    }
    prefetch_.clear();
    if (next != nullptr) expect(*next);
    multiply(stage);
    if (c0 + channels < conv_.in_channels) return;
    for (int64_t done = 0; done < count; done += tile_pixels_)
      unpack_tile(group, first + done, std::min(tile_pixels_, count - done), output_block_ + done);
  }

 private:
  int64_t output_pitch() const { return tile_pixels_ * plan_.block_tiles; }

  void pack_tile(int64_t group, int64_t first, int64_t pixels, int64_t c0, int64_t channels,
                 float* panel) const {
    const Strides4& in = conv_.input_strides;
    PixelRun runs[kMaxTilePixels];
    int64_t run_count = 0;
    for_each_pixel_run(first, pixels, conv_.grid_height, conv_.grid_width,
                       [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t) {
                         runs[run_count++] = {length,
                                              conv_.input + n * in.batch +
                                                  (group * conv_.in_channels + c0) * in.channel,
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

  // Where a tile of flat images finds its input; no vector lies in more than two images.
  GemmColumnSource locate(const Stage& stage, int64_t first, int64_t pixels, float* panel) const {
    const Strides4& in = conv_.input_strides;
    const int64_t lanes = gemm_kernels(plan_.isa).lanes;
    const int64_t plane = conv_.grid_height * conv_.grid_width;
    const float* channel = conv_.input + (stage.group * conv_.in_channels + stage.c0) * in.channel;
    GemmColumnSource source{};
    source.pitch = in.channel;
    source.copy = panel;
    for (int64_t v = 0; v < family_.vectors; ++v) {
      const int64_t image = (first + v * lanes) / plane;
      const int64_t pixel = (first + v * lanes) % plane;
      source.end[v] = std::clamp<int64_t>(pixels - v * lanes, 0, lanes);
      source.split[v] = std::min(source.end[v], plane - pixel);
      source.low[v] = source.split[v] > 0 ? channel + image * in.batch + pixel : channel;
      source.high[v] = source.split[v] < source.end[v]
                           ? channel + (image + 1) * in.batch - source.split[v]
                           : channel;
    }
    return source;
  }

  // Lists what the stage is going to read.
  void expect(const Stage& stage) {
    const Strides4& in = conv_.input_strides;
    if (!flat_) return;
    for_each_pixel_run(stage.first, stage.count, 1, conv_.grid_height * conv_.grid_width,
                       [&](int64_t n, int64_t, int64_t pixel, int64_t length, int64_t) {
                         prefetch_.add(
                             conv_.input + n * in.batch +
                                 (stage.group * conv_.in_channels + stage.c0) * in.channel + pixel,
                             stage.channels, in.channel, length);
                       });
    const int64_t tiles = ceil_div(stage.count, tile_pixels_);
    prefetch_.start(ceil_div(conv_.out_channels, plan_.block_rows) * tiles);
  }

  void multiply(const Stage& stage) {
    const auto [group, first, count, c0, channels] = stage;
    const int64_t depth = taps_ * channels;
    const float* block_weights =
        weights_ + (group * conv_.in_channels + c0) * conv_.out_channels * taps_;
    for (int64_t row = 0; row < conv_.out_channels; row += plan_.block_rows) {
      const int64_t rows = std::min(plan_.block_rows, conv_.out_channels - row);
      const GemmTileFn multiply_tile = family_.by_rows[rows - 1];
      const float* bias =
          conv_.bias == nullptr ? nullptr : conv_.bias + group * conv_.out_channels + row;
      for (int64_t done = 0; done < count; done += tile_pixels_) {
        const int64_t pixels = std::min(tile_pixels_, count - done);
        float* direct = direct_output(conv_, group, first + done, pixels);
        const int64_t c_pitch = direct ? conv_.output_strides.channel : output_pitch();
        float* c = (direct ? direct : output_block_ + done) + row * c_pitch;
        const GemmTile tile{depth,
                            block_weights + row * depth,
                            panel_ + done * depth,
                            tile_pixels_,
                            c,
                            c_pitch,
                            pixels,
                            bias,
                            c0 > 0};
        if (flat_ && row == 0) {
          family_.copying[rows - 1](tile,
                                    locate(stage, first + done, pixels, panel_ + done * depth));
        } else {
          multiply_tile(tile);
        }
        prefetch_.step();
      }
    }
  }

  void unpack_tile(int64_t group, int64_t first, int64_t pixels, const float* block) const {
    if (direct_output(conv_, group, first, pixels) != nullptr) return;
    const Strides4& out = conv_.output_strides;
    float* group_output = conv_.output + group * conv_.out_channels * out.channel;
    // Rows that follow each other without a gap are one long row.
    const bool dense = out.row == conv_.grid_width * out.column;
    for_each_pixel_run(
        first, pixels, dense ? 1 : conv_.grid_height,
        dense ? conv_.grid_height * conv_.grid_width : conv_.grid_width,
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
  const int64_t taps_;
  const int64_t tile_pixels_;
  const bool flat_;  // images are read in place, no vector lies in more than two
  const float* weights_;
  float* panel_;
  float* output_block_;
  Prefetch prefetch_;
};

}  // namespace

bool panel_reads_flat_images(const GatherConv& conv) {
  return conv.taps() == 1 && conv.tap_rows[0] == 0 && conv.tap_columns[0] == 0 &&
         conv.step_height == 1 && conv.step_width == 1 && conv.in_height == conv.grid_height &&
         conv.in_width == conv.grid_width && conv.input_strides.column == 1 &&
         conv.input_strides.row == conv.in_width;
}

void plan_panel(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const int64_t tiles = ceil_div(conv.pixels(), tile_pixels(*plan));
  const int64_t tile_floats = conv.taps() * plan->block_channels * tile_pixels(*plan);
  const int64_t fitting = std::clamp<int64_t>(kPanelFloats / tile_floats, 1, kMaxBlockTiles);
  const int64_t tiles_per_thread = ceil_div(tiles, conv.groups >= threads ? 1 : threads);
  plan->block_tiles = std::min(fitting, tiles_per_thread);
  plan->slots = std::min(threads, conv.groups * tiles);
}

// Per slot: a panel block, then an output block for tiles that are not stored in place.
int64_t panel_slot_floats(const GatherPlan& plan, const GatherConv& conv) {
  const int64_t pixels = tile_pixels(plan) * plan.block_tiles;
  return pixels * (conv.taps() * plan.block_channels + conv.out_channels);
}

void run_panel(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* slots) {
  const int64_t pixels = conv.pixels();
  const int64_t width = tile_pixels(plan);
  const int64_t group_tiles = ceil_div(pixels, width);
  const int64_t tiles = conv.groups * group_tiles;
  const int64_t slot_floats = panel_slot_floats(plan, conv);
  parallel_for(plan.slots, [&](int64_t slot) {
    PixelBlock work(plan, conv, weights, slots + slot * slot_floats);
    const int64_t end = tiles * (slot + 1) / plan.slots;
    // The stage that begins with this tile and channel.
    const auto stage = [&](int64_t tile, int64_t c0) {
      const int64_t group = tile / group_tiles;
      const int64_t left = std::min(end, (group + 1) * group_tiles) - tile;
      const int64_t first = tile % group_tiles * width;
      const int64_t block = ceil_div(left, ceil_div(left, plan.block_tiles));
      return Stage{group, first, std::min(block * width, pixels - first), c0,
                   std::min(plan.block_channels, conv.in_channels - c0)};
    };
    int64_t tile = tiles * slot / plan.slots;
    Stage now = stage(tile, 0);
    while (tile < end) {
      const bool more = now.c0 + now.channels < conv.in_channels;
      Stage next = now;
      if (more) {
        next.c0 += now.channels;
        next.channels = std::min(plan.block_channels, conv.in_channels - next.c0);
      } else {
        tile += ceil_div(now.count, width);
        if (tile < end) next = stage(tile, 0);
      }
      work.run(now, tile < end ? &next : nullptr);
      now = next;
    }
  });
}

}  // namespace fastconv::cpu
