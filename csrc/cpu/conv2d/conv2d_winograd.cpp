// SPDX-License-Identifier: MIT
// Winograd F(2x2, 3x3) and F(4x4, 3x3): 16 and 46 multiplications per tile and input channel where
// the direct form takes 36 and 144 (winograd_ukernels.h). The error of both is about twice that of
// direct sums, within the parity rule. F(4x4, 3x3) with real points, of 36 multiplications, is
// outside it, three to fourteen times, and not exact on integers; so is F(2x4, 3x3).
//
// Pixels are rows of channels, in place in channels_last and transposed block by block otherwise:
// the transforms run along the channels and lose no lanes to narrow maps, and the products are
// matrix products of row-major operands, one per coefficient:
//
//   v[coefficient][tile][channel]  x  u[block][coefficient][channel][column]  =
//   m[coefficient][tile]
//
// Per block of output tiles v is made; per block of output channels the products follow, and m is
// transformed back at once. Where the transformed weights of all output channels would
// leave the cache, a part of these is taken at a time: making v again costs less than reading u
// from memory once per block of tiles.
#include "cpu/conv2d/conv2d_winograd.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_pixel_rows.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_winograd_tiles.h"
#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kTransformedFloats = 160 * 1024;  // v of a block stays in L2
constexpr int64_t kMaxBlockTiles = 14 * 8;
constexpr int64_t kWeightFloats = 1024 * 1024;  // u of one part of the output channels

int64_t lanes_of(const GatherPlan& plan) {
  return gemm_kernels(plan.isa).lanes;
}
int64_t block_width(const GatherPlan& plan) {
  return gemm_kernels(plan.isa).place_wide.vectors * lanes_of(plan);
}
const GemmPlaceFamily& tile_family(const GatherPlan& plan, int64_t channels) {
  const GemmKernels& kernels = gemm_kernels(plan.isa);
  return channels > kernels.lanes ? kernels.place_wide : kernels.place_narrow;
}
const WinogradKernels& winograd_of(const GatherPlan& plan) {
  return winograd_kernels(plan.isa, plan.algorithm == GatherAlgorithm::kWinograd4x4 ? 4 : 2);
}
int64_t tile_rows(const GatherPlan& plan, const GatherConv& conv) {
  return ceil_div(conv.grid_height, winograd_of(plan).tile);
}
int64_t row_tiles(const GatherPlan& plan, const GatherConv& conv) {
  return ceil_div(conv.grid_width, winograd_of(plan).tile);
}
// Rows of the transformed weights per coefficient. One more than a power of two may be, as in v and
// m: the streams that a transform writes must not compete for the same sets of the caches.
int64_t weight_rows(const GatherConv& conv) {
  return conv.in_channels + 1;
}
// Winograd tiles of one block; plan.strip_rows counts rows of tiles here.
int64_t block_tiles(const GatherPlan& plan, const GatherConv& conv) {
  return plan.block_images * plan.strip_rows * row_tiles(plan, conv);
}

PixelSource group_input(const GatherConv& conv, int64_t group, int64_t image) {
  return {conv.input + image * conv.input_strides.batch +
              group * conv.in_channels * conv.input_strides.channel,
          conv.input_strides,
          conv.in_channels,
          conv.in_height,
          conv.in_width,
          0,
          0,
          false};
}

// Output channels [first, last) of every group.
struct ChannelPart {
  int64_t first;
  int64_t last;
};

struct ScratchLayout {
  ScratchLayout(const GatherPlan& plan, const GatherConv& conv) {
    const int64_t tiles = block_tiles(plan, conv);
    const WinogradKernels& form = winograd_of(plan);
    channel_pitch = round_up(conv.in_channels, lanes_of(plan));
    coefficient_pitch = (tiles + 1) * channel_pitch;
    out_pitch = round_up(std::min(plan.block_rows, conv.out_channels), lanes_of(plan));
    weights = round_up(conv.groups * form.coefficients * weight_rows(conv) * out_pitch, 16);
    taps = 9 * conv.in_channels * block_width(plan);
    zeros = channel_pitch;
    v = form.coefficients * coefficient_pitch;
    m = form.coefficients * (tiles + 1) * block_width(plan);
    copy = pixel_rows_floats(group_input(conv, 0, 0), plan.block_images,
                             form.tile * plan.strip_rows + 2);
    output =
        conv.output_strides.channel == 1 ? 0 : form.tile * form.tile * tiles * block_width(plan);
  }
  int64_t slot() const { return round_up(std::max(taps, zeros + v + m + copy + output), 16); }

  int64_t channel_pitch;
  int64_t coefficient_pitch;
  int64_t out_pitch;
  int64_t weights;  // u[group][block][coefficient][channel][column] of one part
  int64_t taps;     // per slot: the taps of one block, while the weights are transformed
  int64_t zeros;    // per slot, the rest of them: what lies outside the input
  int64_t v;
  int64_t m;
  int64_t copy;
  int64_t output;
};

void transform_weights(const GatherPlan& plan, const GatherConv& conv, const ChannelPart& part,
                       float* weights, float* slots) {
  const ScratchLayout layout(plan, conv);
  const int64_t width = block_width(plan);
  const int64_t blocks = ceil_div(part.last - part.first, width);
  const int64_t pieces = conv.groups * blocks;
  const Conv2dKernels& kernels = conv2d_kernels(plan.isa);
  const WinogradKernels& form = winograd_of(plan);
  const int64_t tasks = std::min(plan.slots, pieces);
  parallel_for(tasks, [&](int64_t task) {
    float* taps = slots + task * layout.slot();
    for (int64_t p = pieces * task / tasks; p < pieces * (task + 1) / tasks; ++p) {
      const int64_t group = p / blocks;
      const int64_t o = part.first + p % blocks * width;
      const int64_t columns = std::min(width, part.last - o);
      const int64_t pitch = round_up(columns, lanes_of(plan));
      const float* source = conv.weight + group * conv.weight_group + o * conv.weight_out;
      if (columns < pitch) std::memset(taps, 0, sizeof(float) * 9 * conv.in_channels * pitch);
      if (conv.weight_tap != 1) {
        for (int64_t tap = 0; tap < 9; ++tap)
          kernels.copy_block({columns, conv.in_channels, source + tap * conv.weight_tap,
                              conv.weight_out, conv.weight_in, taps + tap * pitch, 1, 9 * pitch});
      } else if (conv.weight_in == 9) {
        kernels.copy_block(
            {columns, 9 * conv.in_channels, source, conv.weight_out, 1, taps, 1, pitch});
      } else {
        for (int64_t c = 0; c < conv.in_channels; ++c)
          kernels.copy_block({columns, 9, source + c * conv.weight_in, conv.weight_out, 1,
                              taps + c * 9 * pitch, 1, pitch});
      }
      float* u = weights + form.coefficients * weight_rows(conv) *
                               (group * layout.out_pitch + o - part.first);
      form.transform_weights({taps, conv.in_channels, pitch, conv.tap_rows[0] > conv.tap_rows[1], u,
                              weight_rows(conv) * pitch});
    }
  });
}

// Works on blocks of tiles, in one slot: several whole images, or some rows of tiles of one.
class TileRows {
 public:
  TileRows(const GatherPlan& plan, const GatherConv& conv, const ChannelPart& part,
           const float* weights, float* scratch)
      : plan_(plan),
        conv_(conv),
        part_(part),
        layout_(plan, conv),
        form_(winograd_of(plan)),
        weights_(weights),
        zeros_(scratch),
        v_(zeros_ + layout_.zeros),
        m_(v_ + layout_.v),
        copy_(m_ + layout_.m),
        output_(copy_ + layout_.copy) {
    std::memset(zeros_, 0, sizeof(float) * layout_.zeros);
  }

  // Rows of tiles [first_row, first_row + rows) of neighbouring images.
  void run(int64_t group, int64_t image, int64_t images, int64_t first_row, int64_t rows) {
    images_ = images;
    first_row_ = first_row;
    rows_ = rows;
    tiles_ = images * rows * row_tiles(plan_, conv_);
    transform_input(group, image);
    const int64_t width = block_width(plan_);
    for (int64_t o = part_.first; o < part_.last; o += width) {
      const int64_t channels = std::min(width, part_.last - o);
      const int64_t pitch = round_up(channels, lanes_of(plan_));
      multiply(weights_ + form_.coefficients * weight_rows(conv_) *
                              (group * layout_.out_pitch + o - part_.first),
               channels, pitch);
      transform_output(image, group * conv_.out_channels + o, channels, pitch);
    }
  }

 private:
  void transform_input(int64_t group, int64_t image) {
    const int64_t top = std::min(conv_.tap_rows[0], conv_.tap_rows[2]);
    const int64_t left = std::min(conv_.tap_columns[0], conv_.tap_columns[2]);
    const int64_t first = form_.tile * first_row_ + top;
    const int64_t patch = form_.patch();
    const PixelRows input = pixel_rows(conv2d_kernels(plan_.isa), group_input(conv_, group, image),
                                       images_, first, first + form_.tile * rows_ + 2, copy_);
    WinogradInput call{};
    call.channels = conv_.in_channels;
    call.coefficient_pitch = layout_.coefficient_pitch;
    for_each_tile(block(), [&](int64_t index, int64_t n, int64_t i, int64_t j) {
      for (int64_t r = 0; r < patch; ++r) {
        const int64_t row = i + top + r;
        const bool row_inside = row >= 0 && row < conv_.in_height;
        const float* line = input.origin + n * input.image_pitch + row * input.row_pitch;
        for (int64_t q = 0; q < patch; ++q) {
          const int64_t column = j + left + q;
          const bool inside = row_inside && column >= 0 && column < conv_.in_width;
          call.pixels[patch * r + q] = inside ? line + column * input.pixel_pitch : zeros_;
        }
      }
      call.v = v_ + index * layout_.channel_pitch;
      form_.transform_input(call);
    });
  }

  // m[coefficient][tile][column] for one block of output channels.
  void multiply(const float* u, int64_t channels, int64_t pitch) {
    const GemmPlaceFamily& family = tile_family(plan_, channels);
    const int64_t no_offset = 0;
    const float* rows[kMaxTileRows];
    float* results[kMaxTileRows];
    const int64_t steps = ceil_div(tiles_, family.max_rows);
    const int64_t height = ceil_div(tiles_, steps);
    for (int64_t k = 0; k < form_.coefficients; ++k)
      for (int64_t t = 0; t < tiles_; t += height) {
        const int64_t count = std::min(height, tiles_ - t);
        for (int64_t l = 0; l < count; ++l) {
          rows[l] = v_ + k * layout_.coefficient_pitch + (t + l) * layout_.channel_pitch;
          results[l] = m_ + (k * (tiles_ + 1) + t + l) * pitch;
        }
        family.rows[count - 1]({1, conv_.in_channels, rows, u + k * weight_rows(conv_) * pitch,
                                &no_offset, results, 0, pitch, nullptr, false});
      }
  }

  void transform_output(int64_t image, int64_t channel, int64_t channels, int64_t pitch) {
    const Strides4& out = conv_.output_strides;
    const bool in_place = out.channel == 1;
    float* results = in_place ? conv_.output + image * out.batch + channel : output_;
    const int64_t tile = form_.tile;
    const int64_t grid_rows = std::min(tile * rows_, conv_.grid_height - tile * first_row_);
    const int64_t pixel_pitch = in_place ? out.column : channels;
    const int64_t row_pitch = in_place ? out.row : conv_.grid_width * channels;
    const int64_t image_pitch = in_place ? out.batch : grid_rows * row_pitch;
    const int64_t skipped_rows = in_place ? 0 : tile * first_row_;
    WinogradOutput call{};
    call.coefficient_pitch = (tiles_ + 1) * pitch;
    call.channels = channels;
    call.bias = conv_.bias == nullptr ? nullptr : conv_.bias + channel;
    for_each_tile(block(), [&](int64_t index, int64_t n, int64_t i, int64_t j) {
      call.m = m_ + index * pitch;
      for (int64_t y = 0; y < tile; ++y)
        for (int64_t x = 0; x < tile; ++x) {
          const bool inside = i + y < conv_.grid_height && j + x < conv_.grid_width;
          call.targets[tile * y + x] = inside ? results + n * image_pitch +
                                                    (i + y - skipped_rows) * row_pitch +
                                                    (j + x) * pixel_pitch
                                              : nullptr;
        }
      form_.transform_output(call);
    });
    if (in_place) return;
    for (int64_t n = 0; n < images_; ++n)
      store_pixel_rows(conv2d_kernels(plan_.isa),
                       {channels, conv_.grid_width, output_ + n * image_pitch, 1, channels,
                        conv_.output + (image + n) * out.batch + channel * out.channel +
                            tile * first_row_ * out.row,
                        out.channel, out.column},
                       grid_rows, out.row);
  }

  TileBlock block() const {
    return {images_, first_row_, rows_, row_tiles(plan_, conv_), form_.tile};
  }

  static constexpr int64_t kMaxTileRows = 32;

  const GatherPlan& plan_;
  const GatherConv& conv_;
  const ChannelPart part_;
  const ScratchLayout layout_;
  const WinogradKernels& form_;
  const float* weights_;
  float* zeros_;
  float* v_;
  float* m_;
  float* copy_;
  float* output_;
  int64_t images_ = 0;  // the block
  int64_t first_row_ = 0;
  int64_t rows_ = 0;
  int64_t tiles_ = 0;
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
  const int64_t coefficients = winograd_of(*plan).coefficients;
  const int64_t plane = tile_rows(*plan, conv) * row_tiles(*plan, conv);
  const int64_t gemm_rows = gemm_kernels(plan->isa).place_wide.max_rows;
  int64_t tiles = std::clamp(kTransformedFloats / (coefficients * conv.in_channels), 2 * gemm_rows,
                             kMaxBlockTiles);
  // Enough blocks for every thread.
  const int64_t shares = conv.groups >= threads ? 1 : threads;
  tiles = std::min(tiles, ceil_div(conv.batch * plane, shares));
  plan->block_images = std::max<int64_t>(1, tiles / plane);
  plan->strip_rows = tile_rows(*plan, conv);
  int64_t blocks = ceil_div(conv.batch, plan->block_images);
  // Threads take the same number of blocks, or nearly so.
  plan->block_images = ceil_div(conv.batch, round_up(blocks, std::min(shares, conv.batch)));
  blocks = ceil_div(conv.batch, plan->block_images);
  if (tiles < plane) {
    const int64_t rows = std::max<int64_t>(1, tiles / row_tiles(*plan, conv));
    plan->strip_rows = ceil_div(tile_rows(*plan, conv), ceil_div(tile_rows(*plan, conv), rows));
    blocks = conv.batch * ceil_div(tile_rows(*plan, conv), plan->strip_rows);
  }
  plan->slots = std::min(threads, conv.groups * blocks);
  const int64_t width = block_width(*plan);
  const int64_t most = kWeightFloats / (coefficients * conv.in_channels * conv.groups);
  const int64_t parts = ceil_div(conv.out_channels, std::max(4 * width, most));
  plan->block_rows = round_up(ceil_div(conv.out_channels, parts), width);
}

int64_t winograd_scratch_floats(const GatherPlan& plan, const GatherConv& conv) {
  const ScratchLayout layout(plan, conv);
  return layout.weights + plan.slots * layout.slot();
}

void run_winograd(const GatherPlan& plan, const GatherConv& conv, float* scratch) {
  const ScratchLayout layout(plan, conv);
  float* slots = scratch + layout.weights;
  const int64_t strips = ceil_div(tile_rows(plan, conv), plan.strip_rows);
  const int64_t image_blocks = ceil_div(conv.batch, plan.block_images);
  const int64_t units = conv.groups * image_blocks * strips;
  for (int64_t first = 0; first < conv.out_channels; first += plan.block_rows) {
    const ChannelPart part{first, std::min(conv.out_channels, first + plan.block_rows)};
    transform_weights(plan, conv, part, scratch, slots);
    parallel_for(plan.slots, [&](int64_t slot) {
      TileRows work(plan, conv, part, scratch, slots + slot * layout.slot());
      for (int64_t u = units * slot / plan.slots; u < units * (slot + 1) / plan.slots; ++u) {
        const int64_t first_row = u % strips * plan.strip_rows;
        const int64_t image = u / strips % image_blocks * plan.block_images;
        work.run(u / strips / image_blocks, image, std::min(plan.block_images, conv.batch - image),
                 first_row, std::min(plan.strip_rows, tile_rows(plan, conv) - first_row));
      }
    });
  }
}

}  // namespace fastconv::cpu
