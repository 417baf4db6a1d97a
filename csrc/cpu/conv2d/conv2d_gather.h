// SPDX-License-Identifier: MIT
// The loop nest that the forward pass and the input gradient share: every point (i, j) of an output
// grid gathers one input element per tap and input channel.
//
//   output[n, o, i, j] = bias[o] + sum_{c, r, q} w[o, c, r, q] *
//                  input[n, c, i * step_height + tap_rows[r], j * step_width + tap_columns[q]]
//
// Forward: one such gather. Input gradient: one per phase of the stride, without zero insertion,
// because all inputs of a phase see the same subset of taps. Elements outside the input are zero.
//
// Seven algorithms run it (choose_algorithm says when):
//   panel            pixels of the whole batch are numbered flat and cut into tiles, so small maps
//                    waste no lanes; per block of tiles the input is packed into a panel
//                    [channels * taps, pixels] that stays in L2, for all output channels
//   pixel_vectors    a padded copy of a strip of input rows is read in place by every tap, and each
//                    output row is cut into vectors of its own; no panel
//   channel_vectors  the same copy, its elements broadcast one by one: vectors run along the output
//                    channels, no lane is lost to the width of the map
//   rows             channels_last: input pixels are rows of a matrix as they stand, vectors run
//                    along the output channels; other layouts are transposed block by block
//   image_vectors    vectors run along the images of the batch: for few channels, at any width
//   shifted          one product for all taps and output channels, then shifted sums of its planes:
//                    for few output channels and for inputs smaller than the grid
//   winograd         3 x 3 kernels without stride or dilation: 2.25 times fewer multiplications
//   winograd_4x4     the same on tiles of 4 x 4 outputs: 3.1 times fewer
// The full im2col matrix never exists.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/conv2d_ukernels.h"

namespace fastconv::cpu {

// Sizes are per group; `groups` of them lie side by side in the channel dimension.
struct GatherConv {
  int64_t batch;
  int64_t groups;
  int64_t in_channels;
  int64_t in_height;
  int64_t in_width;
  const float* input;
  Strides4 input_strides;

  int64_t out_channels;
  int64_t grid_height;
  int64_t grid_width;
  float* output;  // grid point (0, 0) of channel 0
  Strides4 output_strides;

  int64_t step_height;
  int64_t step_width;
  std::vector<int64_t> tap_rows;
  std::vector<int64_t> tap_columns;

  const float* weight;   // w[g, o, c, r, q] at g * weight_group + o * weight_out + c * weight_in +
  int64_t weight_group;  //                     (weight_rows[r] + weight_columns[q]) * weight_tap
  int64_t weight_out;
  int64_t weight_in;
  int64_t weight_tap;  // 1, or more in channels_last weights
  std::vector<int64_t> weight_rows;
  std::vector<int64_t> weight_columns;
  const char* forced;   // algorithm to use, or nullptr for the best
  int64_t weight_taps;  // taps of the whole kernel; equal to taps() when all take part, in order
  const float* bias;    // [groups * out_channels] or nullptr
  bool weights_packed;  // rows: the scratch memory still holds those of another phase

  int64_t taps() const { return static_cast<int64_t>(tap_rows.size() * tap_columns.size()); }
  int64_t pixels() const { return batch * grid_height * grid_width; }
  int64_t weights() const { return groups * out_channels * in_channels * taps(); }
};

// What the taps of one dimension reach of the input, relative to the first grid point.
struct TapReach {
  explicit TapReach(const std::vector<int64_t>& taps)
      : first(*std::min_element(taps.begin(), taps.end())),
        last(*std::max_element(taps.begin(), taps.end())) {}
  // From the first to the last element that `points` grid points reach.
  int64_t span(int64_t points, int64_t step) const {
    return (points - 1) * step + last - first + 1;
  }
  int64_t first;
  int64_t last;
};

enum class GatherAlgorithm {
  kPanel,
  kPixelVectors,
  kChannelVectors,
  kImageVectors,
  kRows,
  kShifted,
  kWinograd,
  kWinograd4x4
};

const char* gather_algorithm_name(GatherAlgorithm algorithm);

// The blocking of one gather.
struct GatherPlan {
  Isa isa;
  GatherAlgorithm algorithm;
  bool possible;           // false: the forced algorithm cannot serve this gather
  int64_t slots;           // pieces that run in parallel
  int64_t block_rows;      // output channels of one block of packed or transformed weights, or of
                           // products
  int64_t block_channels;  // panel: input channels reduced per pass; else all
  bool wide_tiles;         // few output channels: more pixels per tile instead
  int64_t block_tiles;     // panel: GEMM tiles packed at a time
  int64_t strip_rows;      // grid rows of one image computed at a time (winograd: rows of tiles)
  int64_t block_images;    // rows, shifted, winograd: whole images computed at a time
  int64_t tile_width;      // channel_vectors: index into Conv2dKernels::channel_*
  int64_t cuts;            // image_vectors: pieces of an image's rows, each a lane of its own
};

GatherPlan plan_gather(const GatherConv& conv, Isa isa, int64_t threads);

int64_t gather_scratch_floats(const GatherPlan& plan, const GatherConv& conv);

void run_gather(const GatherPlan& plan, const GatherConv& conv, float* scratch);

}  // namespace fastconv::cpu
