// SPDX-License-Identifier: MIT
// Per strip of grid rows: copy the input rows it needs, zero-padded, then run tiles that read the
// copy in place. Columns are split by their remainder modulo the stride while they are copied, so
// that neighbouring grid points are neighbours in memory whatever the stride:
//
//   strip[channel][row][phase][column]    input column = (column * step_width + phase) + left edge
#include "cpu/conv2d/conv2d_strip.h"

#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_prefetch.h"
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
    const TapReach high(conv.tap_rows), wide(conv.tap_columns);
    top_row = high.first;
    left_column = wide.first;
    rows = high.span(grid_rows, conv.step_height);
    phase_pitch = conv.grid_width + (wide.last - wide.first) / conv.step_width;
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

int64_t count_vectors(const GatherPlan& plan, int64_t channels) {
  return channels > gemm_kernels(plan.isa).lanes ? 2 : 1;
}

// Grid rows [first_row, first_row + rows) of one image and group.
struct StripUnit {
  int64_t image;
  int64_t group;
  int64_t first_row;
  int64_t rows;
};

// Works on strips one by one, in one slot.
class StripWork {
 public:
  StripWork(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* scratch)
      : plan_(plan),
        conv_(conv),
        strip_(conv, plan.strip_rows),
        kernels_(conv2d_kernels(plan.isa)),
        lanes_(gemm_kernels(plan.isa).lanes),
        weights_(weights),
        copy_(scratch),
        output_block_(copy_ + conv.in_channels * strip_.channel_pitch + kSlackFloats) {
    // In the order of the packed weights.
    if (plan.algorithm == GatherAlgorithm::kPixelVectors) {
      for (int64_t row : conv.tap_rows)
        for (int64_t c = 0; c < conv.in_channels; ++c) add_offsets(c, row);
    } else {
      for (int64_t c = 0; c < conv.in_channels; ++c)
        for (int64_t row : conv.tap_rows) add_offsets(c, row);
    }
    runs_.resize(strip_.rows * conv.step_width);
    // Vectors that start in the last row may read, but never keep, what follows the copy.
    std::memset(copy_ + conv.in_channels * strip_.channel_pitch, 0, sizeof(float) * kSlackFloats);
  }

  // What `next` reads and writes is brought near meanwhile; nullptr: there is none.
  void run(const StripUnit& unit, const StripUnit* next) {
    first_row_ = unit.first_row;
    copy_input(unit.image, unit.group, unit.first_row, unit.rows);
    prefetch_.clear();
    if (next != nullptr) {
      const int64_t top =
          std::max<int64_t>(0, next->first_row * conv_.step_height + strip_.top_row);
      prefetch_.add_image(input(*next) + top * conv_.input_strides.row, conv_.input_strides,
                          conv_.in_channels,
                          std::min(conv_.in_height - top, next->rows * conv_.step_height));
      prefetch_.add_image(output(*next), conv_.output_strides, conv_.out_channels, next->rows);
    }
    if (plan_.algorithm == GatherAlgorithm::kChannelVectors) {
      run_channel_vectors(unit.group, unit.rows, output(unit));
    } else {
      run_pixel_vectors(unit.group, unit.rows, output(unit));
    }
  }

 private:
  const float* input(const StripUnit& unit) const {
    const Strides4& in = conv_.input_strides;
    return conv_.input + unit.image * in.batch + unit.group * conv_.in_channels * in.channel;
  }
  float* output(const StripUnit& unit) const {
    const Strides4& out = conv_.output_strides;
    return conv_.output + unit.image * out.batch + unit.group * conv_.out_channels * out.channel +
           unit.first_row * out.row;
  }

  void add_offsets(int64_t channel, int64_t row) {
    for (int64_t column : conv_.tap_columns) {
      const int64_t shift = column - strip_.left_column;
      offsets_.push_back(channel * strip_.channel_pitch +
                         (row - strip_.top_row) * strip_.row_pitch +
                         shift % conv_.step_width * strip_.phase_pitch + shift / conv_.step_width);
    }
  }

  // Kernel rows [begin, end) that any of the strip's grid rows [first, last] sees inside the input;
  // the others would only add zeros. Never empty.
  struct KernelRows {
    int64_t begin;
    int64_t end;
  };
  KernelRows kernel_rows(int64_t first, int64_t last) const {
    const int64_t count = static_cast<int64_t>(conv_.tap_rows.size());
    KernelRows rows{count, 0};
    for (int64_t r = 0; r < count; ++r) {
      const int64_t top = (first_row_ + first) * conv_.step_height + conv_.tap_rows[r];
      const int64_t bottom = (first_row_ + last) * conv_.step_height + conv_.tap_rows[r];
      if (bottom < 0 || top >= conv_.in_height) continue;
      rows.begin = std::min(rows.begin, r);
      rows.end = r + 1;
    }
    return rows.begin < rows.end ? rows : KernelRows{0, 1};
  }

  void copy_input(int64_t image, int64_t group, int64_t first_row, int64_t rows) {
    const Strides4& in = conv_.input_strides;
    const int64_t used_rows =
        (rows - 1) * conv_.step_height + strip_.rows - (plan_.strip_rows - 1) * conv_.step_height;
    const float* source = conv_.input + image * in.batch + group * conv_.in_channels * in.channel;
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

  const float* bias(int64_t group, int64_t o) const {
    return conv_.bias == nullptr ? nullptr : conv_.bias + group * conv_.out_channels + o;
  }

  // Stores `channels` output channels of the block, which has `rows` dense grid rows.
  void unpack(int64_t rows, int64_t channels, int64_t channel_stride, int64_t pixel_stride,
              float* target) const {
    const Strides4& out = conv_.output_strides;
    store_pixel_rows(kernels_,
                     {channels, conv_.grid_width, output_block_, channel_stride, pixel_stride,
                      target, out.channel, out.column},
                     rows, out.row);
  }

  void run_pixel_vectors(int64_t group, int64_t rows, float* plane) {
    const Strides4& out = conv_.output_strides;
    const bool in_place = out.column == 1;
    const int64_t block_pitch = plan_.strip_rows * conv_.grid_width;
    multiply_pixel_vectors(group, rows, in_place ? plane : output_block_,
                           in_place ? out.channel : block_pitch,
                           in_place ? out.row : conv_.grid_width);
    if (!in_place) unpack(rows, conv_.out_channels, block_pitch, 1, plane);
  }

  void multiply_pixel_vectors(int64_t group, int64_t rows, float* output, int64_t pitch,
                              int64_t row_pitch) {
    const DirectFamily& family = plan_.wide_tiles ? kernels_.direct_wide : kernels_.direct_tall;
    const int64_t depth = conv_.in_channels * conv_.taps();
    const float* weights = weights_ + group * conv_.out_channels * depth;
    const int64_t row_vectors = ceil_div(conv_.grid_width, lanes_);
    const int64_t vectors = rows * row_vectors;
    const int64_t kernel_row_terms =
        conv_.in_channels * static_cast<int64_t>(conv_.tap_columns.size());
    prefetch_.start(ceil_div(conv_.out_channels, plan_.block_rows) *
                    ceil_div(vectors, family.vectors));
    for (int64_t o = 0; o < conv_.out_channels; o += plan_.block_rows) {
      const int64_t height = std::min(plan_.block_rows, conv_.out_channels - o);
      DirectTile tile{};
      tile.c_pitch = pitch;
      tile.row_init = bias(group, o);
      for (int64_t first = 0; first < vectors; first += family.vectors) {
        for (int64_t v = 0; v < family.vectors; ++v) {
          // Past the last vector the first one is computed again, but not stored.
          const bool exists = first + v < vectors;
          const int64_t i = exists ? (first + v) / row_vectors : 0;
          const int64_t j = exists ? (first + v) % row_vectors * lanes_ : 0;
          tile.b[v] = copy_ + i * conv_.step_height * strip_.row_pitch + j;
          tile.c[v] = output + o * pitch + i * row_pitch + j;
          tile.lanes[v] = exists ? std::min(lanes_, conv_.grid_width - j) : 0;
        }
        const int64_t last = std::min(first + family.vectors, vectors) - 1;
        const KernelRows used = kernel_rows(first / row_vectors, last / row_vectors);
        tile.depth = (used.end - used.begin) * kernel_row_terms;
        tile.offsets = offsets_.data() + used.begin * kernel_row_terms;
        tile.a = weights + o * depth + used.begin * kernel_row_terms * height;
        prefetch_.step();
        family.by_rows[height - 1](tile);
      }
    }
  }

  void run_channel_vectors(int64_t group, int64_t rows, float* plane) {
    const Strides4& out = conv_.output_strides;
    const bool in_place = out.channel == 1;
    const ChannelFamily& family = channel_family(std::min(plan_.block_rows, conv_.out_channels));
    prefetch_.start(ceil_div(conv_.out_channels, plan_.block_rows) *
                    ceil_div(rows, family.max_lines) * ceil_div(conv_.grid_width, family.columns));
    for (int64_t o = 0; o < conv_.out_channels; o += plan_.block_rows) {
      const int64_t channels = std::min(plan_.block_rows, conv_.out_channels - o);
      float* output = in_place ? plane + o : output_block_;
      multiply_channel_vectors(group, o, channels, rows, output,
                               in_place ? out.row : conv_.grid_width * channels,
                               in_place ? out.column : channels);
      if (!in_place) unpack(rows, channels, 1, channels, plane + o * out.channel);
    }
  }

  const ChannelFamily& channel_family(int64_t channels) const {
    const bool wide = count_vectors(plan_, channels) == 2;
    return (wide ? kernels_.channel_wide : kernels_.channel_narrow)[plan_.tile_width];
  }

  void multiply_channel_vectors(int64_t group, int64_t o, int64_t channels, int64_t rows,
                                float* output, int64_t row_pitch, int64_t pixel_pitch) {
    const ChannelFamily& family = channel_family(channels);
    ChannelTile tile{};
    tile.depth = conv_.in_channels * conv_.taps();
    tile.offsets = offsets_.data();
    tile.b = weights_ + group * conv_.out_channels * tile.depth + o * tile.depth;
    tile.b_pitch = channels;
    tile.c_pixel = pixel_pitch;
    tile.channels = channels;
    tile.bias = bias(group, o);
    for (int64_t i = 0; i < rows; i += family.max_lines) {
      const int64_t lines = std::min(family.max_lines, rows - i);
      for (int64_t tile_j = 0; tile_j < conv_.grid_width; tile_j += family.columns) {
        // The last tile of a row moves left until it fits and computes some pixels again.
        const int64_t j = std::min(tile_j, conv_.grid_width - family.columns);
        for (int64_t l = 0; l < lines; ++l) {
          tile.lines[l] = copy_ + (i + l) * conv_.step_height * strip_.row_pitch + j;
          tile.c[l] = output + (i + l) * row_pitch + j * pixel_pitch;
        }
        prefetch_.step();
        family.by_lines[lines - 1](tile);
      }
    }
  }

  const GatherPlan& plan_;
  const GatherConv& conv_;
  const Strip strip_;
  const Conv2dKernels& kernels_;
  const int64_t lanes_;
  const float* weights_;
  float* copy_;
  float* output_block_;
  std::vector<int64_t> offsets_;
  int64_t first_row_ = 0;
  std::vector<PixelRun> runs_;
  Prefetch prefetch_;
};

}  // namespace

int64_t strip_block_rows(const GatherPlan& plan, int64_t out_channels) {
  const GemmKernels& kernels = gemm_kernels(plan.isa);
  if (plan.algorithm == GatherAlgorithm::kChannelVectors)
    return count_vectors(plan, out_channels) * kernels.lanes;
  const GemmFamily& family = plan.wide_tiles ? kernels.packed_wide : kernels.packed_tall;
  return ceil_div(out_channels, ceil_div(out_channels, family.max_rows));
}

void plan_strip(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
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
int64_t strip_slot_floats(const GatherPlan& plan, const GatherConv& conv) {
  const int64_t channels = plan.algorithm == GatherAlgorithm::kChannelVectors
                               ? std::min(plan.block_rows, conv.out_channels)
                               : conv.out_channels;
  return round_up(conv.in_channels * Strip(conv, plan.strip_rows).channel_pitch + kSlackFloats +
                      channels * plan.strip_rows * conv.grid_width,
                  16);
}

void run_strip(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* slots) {
  const int64_t strips = ceil_div(conv.grid_height, plan.strip_rows);
  const int64_t units = conv.batch * conv.groups * strips;
  const int64_t slot_floats = strip_slot_floats(plan, conv);
  parallel_for(plan.slots, [&](int64_t slot) {
    StripWork work(plan, conv, weights, slots + slot * slot_floats);
    const auto unit = [&](int64_t u) {
      const int64_t first_row = u % strips * plan.strip_rows;
      return StripUnit{u / strips / conv.groups, u / strips % conv.groups, first_row,
                       std::min(plan.strip_rows, conv.grid_height - first_row)};
    };
    run_share(units, slot, plan.slots, unit, &work);
  });
}

}  // namespace fastconv::cpu
