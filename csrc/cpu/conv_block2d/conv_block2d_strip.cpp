// SPDX-License-Identifier: MIT
#include "cpu/conv_block2d/conv_block2d_strip.h"

#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kStripFloats = 4 * 1024;  // a third of L1: input rows and weights live there too
constexpr int64_t kSlackFloats = 64;        // the last vector of a row may read past its end
constexpr int64_t kUsualLanes = 16;

int64_t depth(const Conv2dShape& s) {
  return s.in_channels * s.taps();
}

// The tile width that wastes the fewest columns, then the widest; -1 when the rows are too short.
int64_t choose_tile_width(const ChannelFamily* families, int64_t columns) {
  int64_t best = -1, best_columns = 0;
  for (int i = 0; i < kChannelWidths; ++i) {
    if (families[i].columns > columns) continue;
    const int64_t computed = round_up(columns, families[i].columns);
    if (best >= 0 && computed > best_columns) continue;
    const int64_t accumulators = families[i].columns * families[i].max_lines;
    if (best >= 0 && computed == best_columns &&
        accumulators < families[best].columns * families[best].max_lines)
      continue;
    best = i;
    best_columns = computed;
  }
  return best;
}

}  // namespace

StripLayout choose_strip_layout(const ConvBlock2dShape& shape) {
  // Lanes used, as fractions of whole vectors: of the columns of a row, or of the channels.
  const int64_t columns = 2 * shape.pooled_width(), channels = shape.conv.out_channels;
  const int64_t column_lanes = round_up(columns, kUsualLanes);
  const int64_t channel_lanes = round_up(channels, kUsualLanes);
  constexpr int64_t kShortestTile = 5;
  if (columns < kShortestTile) return StripLayout::kPixels;
  return channels * column_lanes >= columns * channel_lanes ? StripLayout::kChannels
                                                            : StripLayout::kPixels;
}

StripPlan::StripPlan(const ConvBlock2dShape& shape, StripLayout layout_, Isa isa_)
    : layout(layout_), isa(isa_), lanes(gemm_kernels(isa_).lanes) {
  const Conv2dShape& s = shape.conv;
  const GemmKernels& gemm = gemm_kernels(isa);
  used_rows = 2 * shape.pooled_height();
  used_columns = 2 * shape.pooled_width();
  height = used_rows + s.kernel_height - 1;
  width = used_columns + s.kernel_width - 1;
  tile_width = 0;
  two_vectors = s.out_channels > lanes;
  wide_tiles = s.out_channels <= gemm.packed_wide.max_rows;
  if (layout == StripLayout::kChannels) {
    block_channels = std::min(s.out_channels, (two_vectors ? 2 : 1) * lanes);
    const Conv2dKernels& kernels = conv2d_kernels(isa);
    tile_width = choose_tile_width(two_vectors ? kernels.channel_wide : kernels.channel_narrow,
                                   used_columns);
  } else {
    const int64_t most = (wide_tiles ? gemm.packed_wide : gemm.packed_tall).max_rows;
    block_channels = ceil_div(s.out_channels, ceil_div(s.out_channels, most));
  }
  const int64_t row_floats =
      used_columns * (layout == StripLayout::kChannels ? block_channels : s.out_channels);
  strip_rows = std::min(used_rows, std::max<int64_t>(kStripFloats / (2 * row_floats), 1) * 2);
}

int64_t StripPlan::weight_floats(const Conv2dShape& s) const {
  return round_up(s.out_channels * depth(s) + kSlackFloats, 16);
}

int64_t StripPlan::image_floats(const Conv2dShape& s) const {
  return round_up(s.in_channels * height * width + kSlackFloats, 16);
}

int64_t StripPlan::strip_floats(const Conv2dShape& s) const {
  const int64_t channels = layout == StripLayout::kChannels ? block_channels : s.out_channels;
  return round_up(channels * strip_rows * used_columns + kSlackFloats, 16);
}

void pack_strip_weights(const StripPlan& plan, const Conv2dShape& shape, const float* weight,
                        float* packed) {
  const int64_t k = depth(shape);
  for (int64_t o = 0; o < shape.out_channels; o += plan.block_channels) {
    const int64_t rows = std::min(plan.block_channels, shape.out_channels - o);
    conv2d_kernels(plan.isa).copy_block({rows, k, weight + o * k, k, 1, packed + o * k, 1, rows});
  }
}

ConvStrip::ConvStrip(const StripPlan& plan, const Conv2dShape& shape, const float* packed_weights,
                     const float* bias, float* image, float* strip)
    : plan_(plan),
      shape_(shape),
      kernels_(conv2d_kernels(plan.isa)),
      weights_(packed_weights),
      bias_(bias),
      image_(image),
      strip_(strip) {
  for (int64_t c = 0; c < shape.in_channels; ++c)
    for (int64_t r = 0; r < shape.kernel_height; ++r)
      for (int64_t q = 0; q < shape.kernel_width; ++q)
        offsets_.push_back((c * plan.height + r) * plan.width + q);
  // The border stays zero for all images, and so does what vectors read past the last row.
  std::memset(image_, 0, sizeof(float) * plan.image_floats(shape));
}

void ConvStrip::load_image(const float* source, const Strides4& strides) {
  const int64_t top = shape_.padding_height, left = shape_.padding_width;
  const int64_t rows = std::min(shape_.in_height, plan_.height - top);
  const int64_t columns = std::min(shape_.in_width, plan_.width - left);
  const int64_t plane = plan_.height * plan_.width;
  if (columns == plan_.width && strides.row == columns && strides.column == 1) {
    kernels_.copy_block({shape_.in_channels, rows * columns, source, strides.channel, 1,
                         image_ + top * plan_.width, plane, 1});
    return;
  }
  float* target = image_ + top * plan_.width + left;
  for (int64_t c = 0; c < shape_.in_channels; ++c)
    kernels_.copy_block({rows, columns, source + c * strides.channel, strides.row, strides.column,
                         target + c * plane, plan_.width, 1});
}

void ConvStrip::compute(int64_t first, int64_t rows, int64_t channel, int64_t count) {
  if (plan_.layout == StripLayout::kPixels) {
    compute_pixels(first, rows);
  } else {
    compute_channels(first, rows, channel, count);
  }
}

void ConvStrip::compute_pixels(int64_t first, int64_t rows) {
  const DirectFamily& family = plan_.wide_tiles ? kernels_.direct_wide : kernels_.direct_tall;
  const int64_t row_vectors = ceil_div(plan_.used_columns, plan_.lanes);
  const int64_t vectors = rows * row_vectors;
  const int64_t pitch = plan_.strip_rows * plan_.used_columns;
  DirectTile tile{};
  tile.depth = depth(shape_);
  tile.offsets = offsets_.data();
  tile.c_pitch = pitch;
  for (int64_t o = 0; o < shape_.out_channels; o += plan_.block_channels) {
    const int64_t height = std::min(plan_.block_channels, shape_.out_channels - o);
    tile.a = weights_ + o * tile.depth;
    tile.row_init = bias_ == nullptr ? nullptr : bias_ + o;
    for (int64_t v0 = 0; v0 < vectors; v0 += family.vectors) {
      for (int64_t v = 0; v < family.vectors; ++v) {
        // Past the last vector the first one is computed again, but not stored.
        const bool exists = v0 + v < vectors;
        const int64_t i = exists ? (v0 + v) / row_vectors : 0;
        const int64_t j = exists ? (v0 + v) % row_vectors * plan_.lanes : 0;
        tile.b[v] = image_ + (first + i) * plan_.width + j;
        tile.c[v] = strip_ + o * pitch + i * plan_.used_columns + j;
        tile.lanes[v] = exists ? std::min(plan_.lanes, plan_.used_columns - j) : 0;
      }
      family.by_rows[height - 1](tile);
    }
  }
}

void ConvStrip::compute_channels(int64_t first, int64_t rows, int64_t channel, int64_t count) {
  const ChannelFamily& family =
      (plan_.two_vectors ? kernels_.channel_wide : kernels_.channel_narrow)[plan_.tile_width];
  ChannelTile tile{};
  tile.depth = depth(shape_);
  tile.offsets = offsets_.data();
  tile.b = weights_ + channel * tile.depth;
  tile.b_pitch = count;
  tile.c_pixel = count;
  tile.channels = count;
  tile.bias = bias_ == nullptr ? nullptr : bias_ + channel;
  for (int64_t i = 0; i < rows; i += family.max_lines) {
    const int64_t lines = std::min(family.max_lines, rows - i);
    for (int64_t tile_j = 0; tile_j < plan_.used_columns; tile_j += family.columns) {
      // The last tile of a row moves left until it fits and computes some pixels again.
      const int64_t j = std::min(tile_j, plan_.used_columns - family.columns);
      for (int64_t l = 0; l < lines; ++l) {
        tile.lines[l] = image_ + (first + i + l) * plan_.width + j;
        tile.c[l] = strip_ + ((i + l) * plan_.used_columns + j) * count;
      }
      family.by_lines[lines - 1](tile);
    }
  }
}

}  // namespace fastconv::cpu
