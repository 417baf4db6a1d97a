// SPDX-License-Identifier: MIT
// What the forms of the backward pass share: where everything lies in a slot's memory, and the
// gradient of the input as strips of patches. Only conv_block2d_backward*.cpp use it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv_block2d/conv_block2d.h"
#include "cpu/conv_block2d/conv_block2d_strip.h"
#include "cpu/conv_block2d/conv_block2d_ukernels.h"

namespace fastconv::cpu {

// Sizes and places in a slot's memory.
struct BackwardLayout {
  BackwardLayout(const ConvBlock2dBackward& call, Isa isa);

  // In front of the slots: the weights as [out_channels][kernel row][patch], and those of the
  // strip.
  int64_t shared_floats() const {
    return strip_weights() + (recomputes ? strip.weight_floats(shape.conv) : 0);
  }
  int64_t strip_weights() const;

  const ConvBlock2dShape& shape;
  bool channels;  // the form of conv_block2d_backward_channels.cpp
  StripPlan strip;
  bool offset_channels;  // the winning taps are stored [cells, channels], else [channels, cells]
  bool is_max;
  bool recomputes;
  bool wants_input;
  bool dots;     // the weight gradient runs along the pixels
  bool patches;  // every patch of the image is copied to where vectors start
  int64_t lanes;
  int64_t segment;       // floats of a patch under one kernel row
  int64_t patch_pitch;   // rounded up to whole vectors
  int64_t weight_pitch;  // of the weights and weight sums of one output channel
  int64_t out_pitch;     // channels: output channels rounded up to whole vectors
  int64_t values;        // gradient values per output channel
  int64_t image_floats;
  int64_t sum_floats;  // sums of the weight and bias gradients, from `sums` on
  int64_t lane_sums;   // [output channel][tap][lanes]
  int64_t spread;  // gradients of all pixels, [output channel][row][column]; or, in the channels
                   // form, [row][column][out_pitch]
  int64_t sums, bias_sums, image, patch_image, grads, grad_image, cell_grads, counts, list_grads,
      list_weights, plain_image, conv_strip;
  int64_t floats;
};

// Calls visit(first lane, vectors) for the tiles that make up a patch under one kernel row: as many
// vectors as the registers hold, for patches of any width.
template <typename Visit>
void for_each_patch_tile(const BackwardLayout& l, const Visit& visit) {
  const ConvBlock2dKernels& kernels = conv_block2d_kernels(l.strip.isa);
  int64_t most = std::min<int64_t>(l.patch_pitch / l.lanes, kMaxBlockVectors);
  while (kernels.sparse_weight[l.shape.conv.kernel_height - 1][most - 1] == nullptr) --most;
  for (int64_t lane = 0; lane < l.patch_pitch; lane += most * l.lanes)
    visit(lane, std::min(most, (l.patch_pitch - lane) / l.lanes));
}

// Lanes of a tile's last vector that belong to the patch.
inline int64_t patch_tail(const BackwardLayout& l, int64_t lane, int64_t vectors) {
  return std::min(l.lanes, l.segment - lane - (vectors - 1) * l.lanes);
}

// One image's gradient from [row, column, channel], border included, to where the caller wants it.
void store_grad_input(const BackwardLayout& l, const ConvBlock2dBackward& call, int64_t image,
                      const float* strip);

// One slot of the channels form: the gradient is dense, behind an average, and the output channels
// fill vectors. `shared` and `slot` are laid out by BackwardLayout.
class ChannelsBackward {
 public:
  ChannelsBackward(const BackwardLayout& layout, const ConvBlock2dBackward& call,
                   const float* shared, float* slot);
  // What run() reads and writes for an image.
  void fetch(int64_t image) const;
  void run(int64_t image);

 private:
  void spread_grads(int64_t image);
  void add_weight_grads();
  void compute_grad_input(int64_t image);

  const BackwardLayout& l_;
  const ConvBlock2dBackward& call_;
  const ConvBlock2dShape& shape_;
  const Conv2dShape& s_;
  const ConvBlock2dKernels& kernels_;
  const Conv2dKernels& conv_kernels_;
  const float* weights_;
  float* slot_;
  ConvStrip strip_;
};

// True where the channels form serves a shape.
bool channels_backward_applies(const ConvBlock2dShape& shape, Isa isa);

// The gradient of the weights from the sums of the channels form.
void store_channel_sums(const BackwardLayout& l, const float* sums, float* grad_weight);

}  // namespace fastconv::cpu
