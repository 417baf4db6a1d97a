// SPDX-License-Identifier: MIT
// The backward pass behind an average where the output channels fill whole vectors: everything
// stays [row, column, output channel] from the convolution, which is computed again, to the
// gradients.
//
//   weights  conv2d's register tiles on the image as it is, channel by channel
//   bias     a by-product of those
//   input    per pixel, the kernels of all channels, summed in registers
#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv_block2d/conv_block2d_backward.h"
#include "cpu/conv_block2d/conv_block2d_fetch.h"

namespace fastconv::cpu {

bool channels_backward_applies(const ConvBlock2dShape& shape, Isa isa) {
  return shape.pool == BlockPool::kAvg && choose_strip_layout(shape) == StripLayout::kChannels &&
         find_weight_family(conv2d_kernels(isa), shape.conv.kernel_width, 1) != nullptr;
}

ChannelsBackward::ChannelsBackward(const BackwardLayout& layout, const ConvBlock2dBackward& call,
                                   const float* shared, float* slot)
    : l_(layout),
      call_(call),
      shape_(call.shape),
      s_(call.shape.conv),
      kernels_(conv_block2d_kernels(layout.strip.isa)),
      conv_kernels_(conv2d_kernels(layout.strip.isa)),
      weights_(shared),
      slot_(slot),
      strip_(layout.strip, s_, shared + layout.strip_weights(), call.bias,
             slot + layout.plain_image, slot + layout.conv_strip) {
  std::memset(slot_ + l_.sums, 0, sizeof(float) * l_.sum_floats);
  // Channels past the last one stay zero: the tiles read whole vectors.
  if (l_.out_pitch > s_.out_channels)
    std::memset(slot_ + l_.spread, 0, sizeof(float) * l_.values * l_.out_pitch);
}

void ChannelsBackward::fetch(int64_t image) const {
  const int64_t outputs = s_.out_channels * shape_.cells(),
                inputs = s_.in_channels * s_.in_pixels();
  fetch_bytes(call_.grad_output + image * outputs, outputs * 4);
  fetch_image(s_, call_.input, call_.input_strides, image);
  if (call_.grad_input != nullptr) fetch_bytes(call_.grad_input + image * inputs, inputs * 4);
}

void ChannelsBackward::run(int64_t image) {
  strip_.load_image(call_.input + image * call_.input_strides.batch, call_.input_strides);
  spread_grads(image);
  // The bias gradient is a by-product of the weights'.
  if (call_.grad_weight != nullptr || call_.grad_bias != nullptr) add_weight_grads();
  if (call_.grad_input != nullptr) compute_grad_input(image);
}

void ChannelsBackward::spread_grads(int64_t image) {
  const StripPlan& p = l_.strip;
  const int64_t width = shape_.pooled_width(), pitch = l_.out_pitch;
  float* grads = slot_ + l_.grads;
  conv_kernels_.copy_block({s_.out_channels, shape_.cells(),
                            call_.grad_output + image * s_.out_channels * shape_.cells(),
                            shape_.cells(), 1, grads, 1, pitch});
  const auto spread = kernels_.spread_grad_channels[static_cast<int>(shape_.activation)];
  for (int64_t first = 0; first < p.used_rows; first += p.strip_rows) {
    const int64_t rows = std::min(p.strip_rows, p.used_rows - first);
    for (int64_t o = 0; o < s_.out_channels; o += p.block_channels) {
      const int64_t count = std::min(p.block_channels, s_.out_channels - o);
      if (l_.recomputes) strip_.compute(first, rows, o, count);
      for (int64_t i = 0; i < rows; i += 2) {
        float* top = slot_ + l_.spread + (first + i) * p.used_columns * pitch + o;
        // Without an activation nothing depends on z: any readable memory will do.
        const float* z = l_.recomputes ? strip_.strip() + i * p.used_columns * count : top;
        const int64_t z_pitch = l_.recomputes ? count : pitch;
        spread({z, z + p.used_columns * z_pitch, z_pitch,
                grads + (first + i) / 2 * width * pitch + o, pitch, width, count,
                shape_.negative_slope, top, top + p.used_columns * pitch});
      }
    }
  }
}

void ChannelsBackward::add_weight_grads() {
  const StripPlan& p = l_.strip;
  const int64_t lines = s_.in_channels * s_.kernel_height;
  WeightTile tile{};
  tile.rows = p.used_rows;
  tile.width = p.used_columns;
  tile.line_pitch = p.width;
  tile.b_pitch = l_.out_pitch;
  tile.c_pitch = l_.out_pitch;
  for (int64_t o = 0; o < s_.out_channels;) {
    const int64_t vectors = s_.out_channels - o > l_.lanes ? 2 : 1;
    const WeightFamily& family = *find_weight_family(conv_kernels_, s_.kernel_width, vectors);
    const int64_t block_lines = ceil_div(lines, ceil_div(lines, family.max_lines));
    tile.b = slot_ + l_.spread + o;
    for (int64_t first = 0; first < lines; first += block_lines) {
      const int64_t count = std::min(block_lines, lines - first);
      for (int64_t line = 0; line < count; ++line) {
        const int64_t c = (first + line) / s_.kernel_height, r = (first + line) % s_.kernel_height;
        tile.lines[line] = slot_ + l_.plain_image + (c * p.height + r) * p.width;
      }
      tile.c = slot_ + l_.sums + first * s_.kernel_width * l_.out_pitch + o;
      tile.bias = first == 0 ? slot_ + l_.bias_sums + o : nullptr;
      family.by_lines[count - 1](tile);
    }
    o += vectors * l_.lanes;
  }
}

void ChannelsBackward::compute_grad_input(int64_t image) {
  float* strip = slot_ + l_.grad_image;
  std::memset(strip, 0, sizeof(float) * l_.image_floats);
  DenseInputTile tile{};
  tile.rows = l_.strip.used_rows;
  tile.columns = l_.strip.used_columns;
  tile.channels = s_.out_channels;
  tile.grad = slot_ + l_.spread;
  tile.grad_pitch = l_.out_pitch;
  tile.channel_pitch = l_.weight_pitch;
  tile.weight_pitch = l_.patch_pitch;
  tile.row_pitch = l_.strip.width * s_.in_channels;
  tile.column_pitch = s_.in_channels;
  for_each_patch_tile(l_, [&](int64_t lane, int64_t vectors) {
    tile.weights = weights_ + lane;
    tile.strip = strip + lane;
    tile.tail = patch_tail(l_, lane, vectors);
    kernels_.dense_input[s_.kernel_height - 1][vectors - 1](tile);
  });
  store_grad_input(l_, call_, image, strip);
}

void store_channel_sums(const BackwardLayout& l, const float* sums, float* grad_weight) {
  const Conv2dShape& s = l.shape.conv;
  const int64_t rows = s.in_channels * s.taps();
  conv2d_kernels(l.strip.isa)
      .copy_block({rows, s.out_channels, sums, l.out_pitch, 1, grad_weight, 1, rows});
}

}  // namespace fastconv::cpu
