// SPDX-License-Identifier: MIT
// What conv2d needs from an ISA beside the GEMM tiles: moving pixels into panels and tiles out.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// A run of output pixels that lie side by side in one output row of one image.
struct PixelRun {
  int64_t length;
  const float* image;  // channel 0 (of the block) of the image the run reads
  int64_t row;         // input row and column of the run's first pixel at tap offset (0, 0);
  int64_t column;      // both may lie outside the image: such elements read as zero
};

// panel[(channel * taps + tap) * panel_pitch + pixel] =
//     image[channel, run.row + tap_rows[r], run.column + tap_columns[q] + pixel * column_step]
// for the concatenated pixels of all runs; tap = r * tap_column_count + q runs over the product of
// the two lists. Writes exactly sum(length) floats per panel row.
struct PanelPack {
  const PixelRun* runs;
  int64_t run_count;
  const int64_t* tap_rows;  // input row of each kernel row relative to tap offset (0, 0)
  int64_t tap_row_count;
  const int64_t* tap_columns;  // likewise for the columns
  int64_t tap_column_count;
  int64_t channels;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  int64_t column_step;
  int64_t height;
  int64_t width;
  float* panel;
  int64_t panel_pitch;
};

// target[channel * target_channel + pixel * target_pixel] =
//     source[channel * source_channel + pixel * source_pixel]
// Fast when channels or pixels are contiguous on each side (also across: a transposition).
struct BlockCopy {
  int64_t channels;
  int64_t pixels;
  const float* source;
  int64_t source_channel;
  int64_t source_pixel;
  float* target;
  int64_t target_channel;
  int64_t target_pixel;
};

// At most a vector of pixels that lie side by side on both sides of a copy.
struct PixelPiece {
  const float* source;  // channel 0
  float* target;
  int64_t pixels;
};

// piece.target[c * target_channel + l] = piece.source[c * source_channel + l] for c < channels, l <
// piece.pixels of every piece. Channel by channel, so that images are read from front to back.
struct PieceCopy {
  const PixelPiece* pieces;
  int64_t count;
  int64_t channels;
  int64_t source_channel;
  int64_t target_channel;
};

// target[targets[k] * target_pitch + j] = source[j * source_pitch + k] for j < columns, k < depth,
// where targets[k] is not negative: a transposition that also orders the rows. Whole vectors are
// written; those past the last column become zero.
struct ColumnPack {
  int64_t columns;
  int64_t depth;
  const float* source;
  int64_t source_pitch;
  const int64_t* targets;  // [depth]
  float* target;
  int64_t target_pitch;
};

// The way back: target[j * target_pitch + k] = source[rows[k] * source_pitch + j] for j < columns,
// k < depth. Whole vectors of the source are read.
struct ColumnUnpack {
  int64_t columns;
  int64_t depth;
  const float* source;
  int64_t source_pitch;
  const int64_t* rows;  // [depth]
  float* target;
  int64_t target_pitch;
};

// target[i * target_row + j] = bias + sum_{r, q} products[tap * tap_pitch + y * width + x]
//     for i < rows, j < columns, over the taps whose y = row + i + tap_rows[r] lies in [0, height)
//     and x = j + tap_columns[q] in [0, width); tap = r * tap_column_count + q
// The last step of a convolution whose products were formed first, one plane per tap.
struct ShiftedSum {
  const float* products;
  int64_t tap_pitch;
  const int64_t* tap_rows;
  int64_t tap_row_count;
  const int64_t* tap_columns;
  int64_t tap_column_count;
  int64_t row;
  int64_t height;
  int64_t width;
  float bias;
  int64_t rows;
  int64_t columns;
  float* target;
  int64_t target_row;
};

inline constexpr int64_t kMaxDirectVectors = 4;

// A register tile that reads its input vectors in place:
//   c[v][i * c_pitch + lane] = row_init[i] + sum_k a[k * rows + i] * b[v][offsets[k] + lane]
// Whole vectors of b are read; only the first lanes[v] of c are written. Long reductions are cut
// into partial sums, see common/summation.h. depth is at least 1.
struct DirectTile {
  int64_t depth;
  const float* a;
  const int64_t* offsets;  // [depth]
  const float* b[kMaxDirectVectors];
  float* c[kMaxDirectVectors];
  int64_t c_pitch;
  int64_t lanes[kMaxDirectVectors];
  const float* row_init;  // initial value per row, or nullptr for zero
};

using DirectTileFn = void (*)(const DirectTile& tile);

struct DirectFamily {
  int64_t vectors;
  const DirectTileFn* by_rows;  // by_rows[rows - 1]
};

inline constexpr int kMaxChannelLines = 5;

// A register tile of the forward pass whose vectors run along the output channels: `lines` grid
// rows of `columns` neighbouring pixels each, every input element broadcast from where it lies.
//   c[l][j * c_pixel + o] = bias[o] + sum_k lines[l][offsets[k] + j] * b[k * b_pitch + o]
// Whole vectors of b are read; only the first `channels` of c are written. Long reductions are cut
// into partial sums, see common/summation.h.
struct ChannelTile {
  int64_t depth;           // at least 1
  const int64_t* offsets;  // [depth]
  const float* lines[kMaxChannelLines];
  const float* b;
  int64_t b_pitch;
  float* c[kMaxChannelLines];
  int64_t c_pixel;
  int64_t channels;   // 1 .. vectors * lanes
  const float* bias;  // [channels] or nullptr for zero
};

using ChannelTileFn = void (*)(const ChannelTile& tile);

struct ChannelFamily {
  int64_t columns;
  int64_t vectors;
  int64_t max_lines;
  const ChannelTileFn* by_lines;  // by_lines[lines - 1]
};

inline constexpr int kChannelWidths = 4;  // tile widths 5, 7, 8 and 13

inline constexpr int kMaxWeightLines = 9;

// A register tile of the weight gradient that reads its input rows in place. A line is one kernel
// row of one input channel; the taps of its `kernel_width` columns are neighbours in memory.
//   c[(l * kernel_width + q) * c_pitch + o] += sum_{i, j} lines[l][i * line_pitch + j + q] *
//                                                         b[(i * width + j) * b_pitch + o]
//   bias[o] += sum_{i, j} b[(i * width + j) * b_pitch + o]        unless bias is nullptr
struct WeightTile {
  int64_t rows;
  int64_t width;
  const float* lines[kMaxWeightLines];
  int64_t line_pitch;
  const float* b;
  int64_t b_pitch;
  float* c;
  int64_t c_pitch;
  float* bias;
};

using WeightTileFn = void (*)(const WeightTile& tile);

// Tiles for one kernel width: `vectors` vectors of output channels, 1 .. max_lines lines.
struct WeightFamily {
  int64_t kernel_width;
  int64_t vectors;
  int64_t max_lines;
  const WeightTileFn* by_lines;  // by_lines[lines - 1]
};

inline constexpr int kWeightFamilies = 6;  // kernel widths 3, 5, 7, each narrow (1) and wide (2)

inline constexpr int kMaxDotTaps = 6;

// A register tile of the weight gradient whose vectors run along the pixels of a row. A tap is
// where one input channel at one kernel position starts.
//   sums[o * sum_channel + t * lanes + lane] += sum_{i, j = lane mod lanes}
//               taps[t][i * line_pitch + j] * grad[o * grad_channel + i * grad_row + j]
//   bias[o * lanes + lane] += sum_{i, j = lane mod lanes} grad[o * grad_channel + i * grad_row + j]
// Nothing past column width - 1 is read.
struct DotTile {
  int64_t rows;
  int64_t width;
  const float* taps[kMaxDotTaps];
  int64_t line_pitch;
  const float* grad;
  int64_t grad_channel;
  int64_t grad_row;
  float* sums;
  int64_t sum_channel;
  float* bias;  // or nullptr
};

using DotTileFn = void (*)(const DotTile& tile);

// Tiles of 1 .. max_taps taps and 1 .. max_channels output channels, but at most max_sums of both
// multiplied; a bias counts as a tap.
struct DotFamily {
  int64_t max_taps;
  int64_t max_channels;
  int64_t max_sums;
  const DotTileFn* tiles;  // tiles[(channels - 1) * max_taps + taps - 1]
};

// direct_tall and direct_wide have the tile sizes of GemmKernels' packed_tall and packed_wide.
struct Conv2dKernels {
  DirectFamily direct_tall;
  DirectFamily direct_wide;
  ChannelFamily channel_narrow[kChannelWidths];  // one vector of output channels
  ChannelFamily channel_wide[kChannelWidths];    // two
  WeightFamily weight[kWeightFamilies];
  DotFamily dot;
  // total[i] += sum of the `lanes` floats of sums[i], for i < count.
  void (*add_lanes)(const float* sums, int64_t count, float* total);
  void (*pack_panel)(const PanelPack& pack);
  void (*add_shifted)(const ShiftedSum& sum);
  void (*copy_pieces)(const PieceCopy& copy);
  void (*copy_block)(const BlockCopy& copy);
  void (*pack_columns)(const ColumnPack& pack);
  void (*unpack_columns)(const ColumnUnpack& unpack);
};

extern const Conv2dKernels kConv2dKernelsScalar;
extern const Conv2dKernels kConv2dKernelsAvx2;
extern const Conv2dKernels kConv2dKernelsAvx512;

inline const Conv2dKernels& conv2d_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kConv2dKernelsAvx512
         : isa == Isa::kAvx2 ? kConv2dKernelsAvx2
                             : kConv2dKernelsScalar;
}

// The tiles of the weight gradient of one kernel width; nullptr where there are none.
inline const WeightFamily* find_weight_family(const Conv2dKernels& kernels, int64_t kernel_width,
                                              int64_t vectors) {
  for (const WeightFamily& family : kernels.weight)
    if (family.kernel_width == kernel_width && family.vectors == vectors) return &family;
  return nullptr;
}

}  // namespace fastconv::cpu
