// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv_block2d/conv_block2d_backward.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kSlackFloats = 64;
constexpr int64_t kMaxPatchFloats = 8 * 1024;  // two thirds of L1

// Instructions per pooled value of the two forms of the weight gradient.
bool prefers_dots(const ConvBlock2dShape& shape, Isa isa) {
  const Conv2dShape& s = shape.conv;
  if (s.in_channels != 1) return false;
  const bool is_max = shape.pool == BlockPool::kMax;
  // The tiles read the winning taps along the cells.
  if (is_max && choose_strip_layout(shape) == StripLayout::kChannels) return false;
  constexpr int64_t kPlacing = 3;  // to find the patch of one value
  const int64_t lanes = conv_block2d_kernels(isa).lanes;
  const int64_t patches = s.kernel_height * ceil_div(s.kernel_width, lanes);
  const int64_t along_patches = is_max ? patches + kPlacing : 4 * patches;
  return 4 * s.taps() <= along_patches * lanes;
}

}  // namespace

BackwardLayout::BackwardLayout(const ConvBlock2dBackward& call, Isa isa)
    : shape(call.shape),
      channels(channels_backward_applies(call.shape, isa)),
      strip(call.shape, channels ? StripLayout::kChannels : StripLayout::kPixels, isa),
      offset_channels(choose_strip_layout(call.shape) == StripLayout::kChannels) {
  const Conv2dShape& s = shape.conv;
  lanes = conv_block2d_kernels(isa).lanes;
  segment = s.kernel_width * s.in_channels;
  patch_pitch = round_up(segment, lanes);
  weight_pitch = s.kernel_height * patch_pitch;
  out_pitch = round_up(s.out_channels, lanes);
  is_max = shape.pool == BlockPool::kMax;
  recomputes = !is_max && shape.activation != Activation::kNone;
  wants_input = call.grad_input != nullptr;
  values = is_max ? shape.cells() : strip.used_rows * strip.used_columns;
  dots = !channels && prefers_dots(shape, isa);
  image_floats = round_up(strip.height * strip.width * s.in_channels + kSlackFloats, 16);
  const int64_t pixels = strip.used_rows * strip.used_columns;
  const int64_t patch_floats = strip.height * strip.used_columns * patch_pitch;
  patches = !channels && !dots && patch_floats <= kMaxPatchFloats;
  int64_t at = 0;
  const auto take = [&](int64_t amount) {
    const int64_t begin = at;
    at += round_up(amount, 16);
    return begin;
  };
  lane_sums = take(dots ? s.out_channels * s.taps() * lanes : 0);
  sums = take(channels ? s.in_channels * s.taps() * out_pitch : s.out_channels * weight_pitch);
  bias_sums = take(out_pitch);
  sum_floats = at - sums;
  image = take(channels ? 0 : image_floats);
  patch_image = take(patches ? patch_floats : 0);
  grads = take(channels ? shape.cells() * out_pitch : s.out_channels * values);
  spread = channels ? take(pixels * out_pitch)
                    : (dots && is_max ? take(s.out_channels * pixels) : grads);
  grad_image = take(wants_input ? image_floats : 0);
  const bool lists = wants_input && !channels;
  cell_grads = take(lists && is_max && offset_channels ? shape.cells() * out_pitch : 0);
  counts = take(lists ? pixels : 0);
  list_grads = take(lists ? pixels * s.out_channels + lanes : 0);
  list_weights = take(lists ? pixels * s.out_channels + lanes : 0);
  plain_image = take(recomputes || channels ? strip.image_floats(s) : 0);
  conv_strip = take(recomputes ? strip.strip_floats(s) : 0);
  floats = at;
}

int64_t BackwardLayout::strip_weights() const {
  return round_up(wants_input ? shape.conv.out_channels * weight_pitch : 0, 16);
}

void store_grad_input(const BackwardLayout& l, const ConvBlock2dBackward& call, int64_t image,
                      const float* strip) {
  const Conv2dShape& s = l.shape.conv;
  const int64_t c = s.in_channels, plane = s.in_pixels();
  const int64_t top = s.padding_height, left = s.padding_width;
  const int64_t rows = std::min(s.in_height, l.strip.height - top);
  const int64_t columns = std::min(s.in_width, l.strip.width - left);
  const float* source = strip + (top * l.strip.width + left) * c;
  float* target = call.grad_input + image * c * plane;
  // Rows and columns that no window reaches have no gradient.
  if (rows < s.in_height || columns < s.in_width) std::memset(target, 0, sizeof(float) * c * plane);
  const Conv2dKernels& movers = conv2d_kernels(l.strip.isa);
  const bool dense = columns == l.strip.width && columns == s.in_width;
  const int64_t pieces = dense ? 1 : rows;
  const int64_t pixels = rows * columns / pieces;
  for (int64_t i = 0; i < pieces; ++i)
    movers.copy_block(
        {c, pixels, source + i * l.strip.width * c, 1, c, target + i * s.in_width, plane, 1});
}

}  // namespace fastconv::cpu
