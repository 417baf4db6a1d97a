// SPDX-License-Identifier: MIT
// For few output channels. One matrix product forms, for every input pixel, its share in every
// output channel and tap; each output channel then sums the planes of its taps, shifted:
//
//   products[o, tap][pixel] = sum_c w[o, c, tap] * input[c, pixel]
//   output[o, i, j]         = bias[o] + sum_tap products[o, tap][i + tap_row, j + tap_column]
//
// The tiles of the product are as high as taps and channels together, where a tile of pixel_vectors
// has one row per output channel; the pixels are flat, so that narrow maps waste no lanes; and
// nothing is multiplied by the zeros around the input, which a full correlation (the input gradient
// of an unpadded layer) mostly reads.
#include "cpu/conv2d/conv2d_shifted.h"

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

constexpr int64_t kProductFloats = 96 * 1024;  // of a strip, which stay in L2
constexpr int64_t kMostTilePixels = 64;        // of any instruction set's tiles
constexpr int64_t kManyPixels = 256;           // of which a tile that is not full wastes little

// The input rows that grid rows reach.
struct Reach {
  explicit Reach(const GatherConv& conv) {
    const TapReach taps(conv.tap_rows);
    top = taps.first;
    rows = taps.span(1, conv.step_height);
  }
  // Of `images` images; several lie side by side with all their rows, reached or not.
  int64_t strip_rows(const GatherConv& conv, int64_t images, int64_t grid_rows) const {
    return images > 1 ? images * conv.in_height : std::min(conv.in_height, grid_rows + rows - 1);
  }
  int64_t top;   // first input row relative to the grid row's
  int64_t rows;  // from there to the last one
};

// Of the products of `input_rows` rows. An odd number of vectors, so that the planes do not compete
// for the same L1 sets.
int64_t plane_pitch(const GatherConv& conv, int64_t input_rows) {
  constexpr int64_t kVector = 16;
  const int64_t vectors = ceil_div(input_rows * conv.in_width, kVector);
  return (vectors | 1) * kVector;
}

int64_t weight_floats(const GatherConv& conv) {
  return round_up(conv.weights(), 16);
}

// What a thread's products may take: as much as stays in L2, and with everything else no more than
// the larger of input and output.
int64_t product_floats(const GatherConv& conv, int64_t threads) {
  const int64_t images = conv.batch * conv.groups;
  const int64_t operands =
      images * std::max(conv.in_channels * conv.in_height * conv.in_width,
                        conv.out_channels * conv.grid_height * conv.grid_width);
  const int64_t panel = conv.in_channels * kMostTilePixels;
  return std::min(kProductFloats, (operands - weight_floats(conv)) / threads - panel);
}

struct Blocking {
  int64_t strip_rows;
  int64_t strip_images;  // more than one: whole images
  int64_t block_channels;
};

Blocking block_work(const GatherConv& conv, int64_t threads) {
  const Reach reach(conv);
  const int64_t units = conv.batch * conv.groups;
  // Fewer images than threads: cut each image into several strips.
  const int64_t cuts = units >= threads ? 1 : ceil_div(threads, units);
  int64_t rows = ceil_div(conv.grid_height, cuts);
  const bool in_place = conv.output_strides.column == 1;
  const auto channel_floats = [&](int64_t images) {
    return conv.taps() * plane_pitch(conv, reach.strip_rows(conv, images, rows)) +
           (in_place ? 0 : rows * conv.grid_width);
  };
  const int64_t most_floats = product_floats(conv, threads);
  while (rows > 1 && channel_floats(1) > kProductFloats) rows = ceil_div(rows, 2);
  int64_t images = 1;
  const int64_t plane = conv.in_height * conv.in_width;
  if (rows == conv.grid_height && 0 < plane && plane < kManyPixels) {
    const int64_t most = std::min(ceil_div(kManyPixels, plane), units / threads);
    while (images < most && channel_floats(images + 1) <= most_floats) ++images;
  }
  const int64_t channels = std::clamp<int64_t>(
      most_floats / std::max<int64_t>(1, channel_floats(images)), 1, conv.out_channels);
  return {rows, images, ceil_div(conv.out_channels, ceil_div(conv.out_channels, channels))};
}

const GemmFamily& tile_family(Isa isa) {
  return gemm_kernels(isa).packed_tall;
}

// Rows of a GEMM tile; `rows` of them are cut evenly.
int64_t tile_rows(Isa isa, int64_t rows) {
  return ceil_div(rows, ceil_div(rows, tile_family(isa).max_rows));
}

// Packs target[k * count + i], the weights of rows [first, first + count) of (output channel, tap)
// for input channel k.
void pack_rows(const Conv2dKernels& kernels, const GatherConv& conv, const float* group_weights,
               int64_t first, int64_t count, float* target) {
  const int64_t taps = conv.taps();
  if (conv.weight_taps == taps && conv.weight_tap == 1 && conv.weight_out == taps) {
    kernels.copy_block(
        {conv.in_channels, count, group_weights + first, conv.weight_in, 1, target, count, 1});
    return;
  }
  const int64_t columns = static_cast<int64_t>(conv.tap_columns.size());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t tap = (first + i) % taps;
    const float* source =
        group_weights + (first + i) / taps * conv.weight_out +
        (conv.weight_rows[tap / columns] + conv.weight_columns[tap % columns]) * conv.weight_tap;
    for (int64_t k = 0; k < conv.in_channels; ++k)
      target[k * count + i] = source[k * conv.weight_in];
  }
}

void pack_weights(const GatherPlan& plan, const GatherConv& conv, float* packed) {
  const Conv2dKernels& kernels = conv2d_kernels(plan.isa);
  const int64_t taps = conv.taps();
  for (int64_t group = 0; group < conv.groups; ++group)
    for (int64_t o = 0; o < conv.out_channels; o += plan.block_rows) {
      const int64_t rows = std::min(plan.block_rows, conv.out_channels - o) * taps;
      const int64_t height = tile_rows(plan.isa, rows);
      for (int64_t row = 0; row < rows; row += height) {
        const int64_t count = std::min(height, rows - row);
        pack_rows(kernels, conv, conv.weight + group * conv.weight_group, o * taps + row, count,
                  packed);
        packed += count * conv.in_channels;
      }
    }
}

// Grid rows [first_row, first_row + rows) of neighbouring images of one group.
struct Strip {
  int64_t group;
  int64_t image;
  int64_t images;
  int64_t first_row;
  int64_t rows;
};

// Works on strips one by one, in one slot.
class ShiftedStrip {
 public:
  ShiftedStrip(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* scratch)
      : conv_(conv),
        isa_(plan.isa),
        block_channels_(plan.block_rows),
        family_(tile_family(plan.isa)),
        kernels_(conv2d_kernels(plan.isa)),
        reach_(conv),
        in_place_(shifted_in_place(conv) &&
                  (plan.block_images == 1 ||
                   conv.in_height * conv.in_width >= gemm_kernels(plan.isa).lanes)),
        tile_pixels_(tile_pixels(plan)),
        pitch_(strip_pitch(plan, conv)),
        weights_(weights),
        panel_(scratch),
        products_(panel_ + panel_floats(plan, conv)),
        output_(products_ + plan.block_rows * conv.taps() * pitch_) {}

  static int64_t tile_pixels(const GatherPlan& plan) {
    return tile_family(plan.isa).vectors * gemm_kernels(plan.isa).lanes;
  }
  static int64_t panel_floats(const GatherPlan& plan, const GatherConv& conv) {
    return round_up(conv.in_channels * tile_pixels(plan), 16);
  }
  static int64_t strip_pitch(const GatherPlan& plan, const GatherConv& conv) {
    return plane_pitch(conv, Reach(conv).strip_rows(conv, plan.block_images, plan.strip_rows));
  }
  static int64_t floats(const GatherPlan& plan, const GatherConv& conv) {
    const int64_t output =
        conv.output_strides.column == 1 ? 0 : plan.block_rows * plan.strip_rows * conv.grid_width;
    return round_up(
        panel_floats(plan, conv) + plan.block_rows * conv.taps() * strip_pitch(plan, conv) + output,
        16);
  }

  // The input of `next` is brought near meanwhile; nullptr: there is none.
  void run(const Strip& strip, const Strip* next) {
    strip_ = strip;
    top_ = first_input_row(strip);
    const int64_t reached = strip.first_row + strip.rows - 1 + reach_.top + reach_.rows;
    height_ = strip.images > 1 ? conv_.in_height
                               : std::clamp<int64_t>(reached, 0, conv_.in_height) - top_;
    const float* next_input = next == nullptr ? nullptr : input(*next);
    const int64_t taps = conv_.taps();
    for (int64_t o = 0; o < conv_.out_channels; o += block_channels_) {
      const int64_t channels = std::min(block_channels_, conv_.out_channels - o);
      const bool last = o + channels == conv_.out_channels;
      multiply(channels * taps,
               weights_ + (strip.group * conv_.out_channels + o) * taps * conv_.in_channels,
               last ? next_input : nullptr);
      sum(strip.group * conv_.out_channels + o, channels);
    }
  }

 private:
  int64_t first_input_row(const Strip& strip) const {
    if (strip.images > 1) return 0;
    return std::clamp<int64_t>(strip.first_row + reach_.top, 0, conv_.in_height);
  }

  const float* input(const Strip& strip) const {
    const Strides4& in = conv_.input_strides;
    return conv_.input + strip.image * in.batch + strip.group * conv_.in_channels * in.channel +
           first_input_row(strip) * in.row;
  }

  // products_[row][pixel] for the strip's input pixels and `rows` rows of packed weights. What is
  // read next, at last at `next_input`, is brought near meanwhile.
  void multiply(int64_t rows, const float* weights, const float* next_input) {
    const float* source = input(strip_);
    const int64_t plane = height_ * conv_.in_width;
    const int64_t pixels = strip_.images * plane;
    const int64_t height = tile_rows(isa_, rows);
    for (int64_t first = 0; first < pixels; first += tile_pixels_) {
      GemmTile tile{};
      tile.depth = conv_.in_channels;
      tile.b = panel_;
      tile.b_pitch = tile_pixels_;
      tile.c_pitch = pitch_;
      tile.columns = std::min(tile_pixels_, pixels - first);
      if (!in_place_) copy_tile(source, first, tile.columns);
      const int64_t next = first + tile_pixels_;
      prefetch(next < pixels ? source + next / plane * conv_.input_strides.batch + next % plane
                             : next_input);
      for (int64_t row = 0; row < rows; row += height) {
        const int64_t count = std::min(height, rows - row);
        tile.a = weights + row * conv_.in_channels;
        tile.c = products_ + row * pitch_ + first;
        if (in_place_ && row == 0) {
          family_.copying[count - 1](tile, locate(source, first, tile.columns));
        } else {
          family_.by_rows[count - 1](tile);
        }
      }
    }
  }

  void prefetch(const float* source) const {
    if (!in_place_ || source == nullptr) return;
    constexpr int64_t kLine = 16;
    for (int64_t c = 0; c < conv_.in_channels; ++c)
      for (int64_t pixel = 0; pixel < tile_pixels_; pixel += kLine)
        __builtin_prefetch(source + c * conv_.input_strides.channel + pixel);
    // GCC takes a function that does nothing but this for one without effects, and drops its calls.
    asm volatile("");
  }

  // Where the tile that starts at flat pixel `first` of the strip finds its input; no vector lies
  // in more than two images.
  GemmColumnSource locate(const float* source, int64_t first, int64_t pixels) const {
    const int64_t lanes = gemm_kernels(isa_).lanes;
    const int64_t batch = conv_.input_strides.batch;
    const int64_t plane = height_ * conv_.in_width;
    GemmColumnSource columns{};
    columns.pitch = conv_.input_strides.channel;
    columns.copy = panel_;
    for (int64_t v = 0; v < family_.vectors; ++v) {
      const int64_t image = (first + v * lanes) / plane;
      const int64_t pixel = (first + v * lanes) % plane;
      columns.end[v] = std::clamp<int64_t>(pixels - v * lanes, 0, lanes);
      columns.split[v] = std::min(columns.end[v], plane - pixel);
      columns.low[v] = columns.end[v] > 0 ? source + image * batch + pixel : source;
      columns.high[v] = columns.split[v] < columns.end[v]
                            ? source + (image + 1) * batch - columns.split[v]
                            : source;
    }
    return columns;
  }

  void copy_tile(const float* source, int64_t first, int64_t pixels) {
    const Strides4& in = conv_.input_strides;
    // Lanes past the last pixel are multiplied but never stored; zero keeps them harmless.
    if (pixels < tile_pixels_)
      std::memset(panel_, 0, sizeof(float) * conv_.in_channels * tile_pixels_);
    const bool dense = in.row == conv_.in_width * in.column;
    for_each_pixel_run(
        first, pixels, dense ? 1 : height_, dense ? height_ * conv_.in_width : conv_.in_width,
        [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t offset) {
          kernels_.copy_block({conv_.in_channels, length,
                               source + n * in.batch + i * in.row + j * in.column, in.channel,
                               in.column, panel_ + offset, tile_pixels_, 1});
        });
  }

  // Output channels [channel, channel + channels), counted over all groups.
  void sum(int64_t channel, int64_t channels) {
    const Strides4& out = conv_.output_strides;
    const bool in_place = out.column == 1;
    ShiftedSum call{};
    call.tap_pitch = pitch_;
    call.tap_rows = conv_.tap_rows.data();
    call.tap_row_count = static_cast<int64_t>(conv_.tap_rows.size());
    call.tap_columns = conv_.tap_columns.data();
    call.tap_column_count = static_cast<int64_t>(conv_.tap_columns.size());
    call.row = strip_.first_row - top_;
    call.height = height_;
    call.width = conv_.in_width;
    call.rows = strip_.rows;
    call.columns = conv_.grid_width;
    call.target_row = in_place ? out.row : conv_.grid_width;
    const int64_t plane = strip_.rows * conv_.grid_width;
    for (int64_t n = 0; n < strip_.images; ++n) {
      float* target = conv_.output + (strip_.image + n) * out.batch + channel * out.channel +
                      strip_.first_row * out.row;
      for (int64_t o = 0; o < channels; ++o) {
        call.products = products_ + o * conv_.taps() * pitch_ + n * height_ * conv_.in_width;
        call.bias = conv_.bias == nullptr ? 0.0f : conv_.bias[channel + o];
        call.target = in_place ? target + o * out.channel : output_ + o * plane;
        kernels_.add_shifted(call);
      }
      if (!in_place)
        store_pixel_rows(
            kernels_,
            {channels, conv_.grid_width, output_, plane, 1, target, out.channel, out.column},
            strip_.rows, out.row);
    }
  }

  const GatherConv& conv_;
  const Isa isa_;
  const int64_t block_channels_;
  const GemmFamily& family_;
  const Conv2dKernels& kernels_;
  const Reach reach_;
  const bool in_place_;
  const int64_t tile_pixels_;
  const int64_t pitch_;
  const float* weights_;
  float* panel_;     // [channel][tile_pixels_]: the input of one tile
  float* products_;  // [output channel, tap][pitch_]
  float* output_;
  Strip strip_{};
  int64_t top_ = 0;  // its first input row, and how many it reads
  int64_t height_ = 0;
};

}  // namespace

bool shifted_applies(const GatherConv& conv) {
  return conv.step_height == 1 && conv.step_width == 1;
}

bool shifted_in_place(const GatherConv& conv) {
  return conv.input_strides.column == 1 && conv.input_strides.row == conv.in_width;
}

double shifted_work(const GatherConv& conv) {
  const Blocking blocking = block_work(conv, 1);
  const int64_t rows = Reach(conv).strip_rows(conv, blocking.strip_images, blocking.strip_rows);
  const double strips = static_cast<double>(ceil_div(conv.grid_height, blocking.strip_rows));
  return strips * static_cast<double>(plane_pitch(conv, rows)) /
         static_cast<double>(blocking.strip_images * conv.grid_height * conv.grid_width);
}

void plan_shifted(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const Blocking blocking = block_work(conv, threads);
  plan->strip_rows = blocking.strip_rows;
  plan->block_images = blocking.strip_images;
  plan->block_rows = blocking.block_channels;
  plan->slots = std::min(threads, conv.groups * ceil_div(conv.batch, plan->block_images) *
                                      ceil_div(conv.grid_height, plan->strip_rows));
}

int64_t shifted_scratch_floats(const GatherPlan& plan, const GatherConv& conv) {
  return weight_floats(conv) + plan.slots * ShiftedStrip::floats(plan, conv);
}

void run_shifted(const GatherPlan& plan, const GatherConv& conv, float* scratch) {
  pack_weights(plan, conv, scratch);
  float* slots = scratch + weight_floats(conv);
  const int64_t strips = ceil_div(conv.grid_height, plan.strip_rows);
  const int64_t image_blocks = ceil_div(conv.batch, plan.block_images);
  const int64_t units = conv.groups * image_blocks * strips;
  const int64_t slot_floats = ShiftedStrip::floats(plan, conv);
  parallel_for(plan.slots, [&](int64_t slot) {
    ShiftedStrip work(plan, conv, scratch, slots + slot * slot_floats);
    const auto strip = [&](int64_t unit) {
      const int64_t first_row = unit % strips * plan.strip_rows;
      const int64_t image = unit / strips % image_blocks * plan.block_images;
      return Strip{unit / strips / image_blocks, image,
                   std::min(plan.block_images, conv.batch - image), first_row,
                   std::min(plan.strip_rows, conv.grid_height - first_row)};
    };
    run_share(units, slot, plan.slots, strip, &work);
  });
}

}  // namespace fastconv::cpu
