// SPDX-License-Identifier: MIT
// Computes rows of one image's convolution into a strip that stays in L1, with conv2d's register
// tiles. Only conv_block2d*.cpp use it.
//
// Two layouts of the strip, chosen by the shape alone: pixels [out_channels, rows, width] for
// few output channels, and channels [rows, width, block_channels] where those fill whole vectors.
#pragma once

#include <vector>

#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv_block2d/conv_block2d.h"

namespace fastconv::cpu {

enum class StripLayout { kPixels, kChannels };

StripLayout choose_strip_layout(const ConvBlock2dShape& shape);

// Sizes of the strips of one shape; the same for all slots.
struct StripPlan {
  StripPlan(const ConvBlock2dShape& shape, StripLayout layout, Isa isa);

  StripLayout layout;
  Isa isa;
  int64_t lanes;
  int64_t height;  // of the zero-padded image: what the windows reach
  int64_t width;
  int64_t used_rows;  // rows and columns of the convolution that the windows cover
  int64_t used_columns;
  int64_t strip_rows;      // even
  int64_t block_channels;  // output channels of one block of packed weights
  int64_t tile_width;      // kChannels: index into Conv2dKernels::channel_*
  bool wide_tiles;         // kPixels: direct_wide instead of direct_tall
  bool two_vectors;        // kChannels: channel_wide instead of channel_narrow

  int64_t weight_floats(const Conv2dShape& s) const;
  int64_t image_floats(const Conv2dShape& s) const;
  int64_t strip_floats(const Conv2dShape& s) const;
};

// packed[block][k][channel]; `packed` holds plan.weight_floats.
void pack_strip_weights(const StripPlan& plan, const Conv2dShape& shape, const float* weight,
                        float* packed);

// One image at a time, in one slot.
class ConvStrip {
 public:
  ConvStrip(const StripPlan& plan, const Conv2dShape& shape, const float* packed_weights,
            const float* bias, float* image, float* strip);

  // Copies an image between the zeros around it; `source` is its channel 0.
  void load_image(const float* source, const Strides4& strides);

  // Rows [first, first + rows) of the channels [channel, channel + count) into the strip. In the
  // channels layout the channels are one block; in the pixels layout all of them.
  void compute(int64_t first, int64_t rows, int64_t channel, int64_t count);

  const float* strip() const { return strip_; }

 private:
  void compute_pixels(int64_t first, int64_t rows);
  void compute_channels(int64_t first, int64_t rows, int64_t channel, int64_t count);

  const StripPlan& plan_;
  const Conv2dShape& shape_;
  const Conv2dKernels& kernels_;
  const float* weights_;
  const float* bias_;
  float* image_;
  float* strip_;
  std::vector<int64_t> offsets_;
};

}  // namespace fastconv::cpu
