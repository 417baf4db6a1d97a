// SPDX-License-Identifier: MIT
// Which shapes are served, and the forward pass: strips of convolution rows, pooled in L1. Images
// are split over threads.
#include "cpu/conv_block2d/conv_block2d.h"

#include <algorithm>

#include "common/checked.h"
#include "cpu/conv_block2d/conv_block2d_fetch.h"
#include "cpu/conv_block2d/conv_block2d_strip.h"
#include "cpu/conv_block2d/conv_block2d_ukernels.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kMaxImageFloats = 48 * 1024;        // two copies stay in L2
constexpr int64_t kMaxImageMultiplyAdds = 4'000'000;  // one thread works on one image
constexpr int64_t kMaxKernelWidth = 16;
// From here on conv2d's Winograd, which has no strips, was measured to be the faster one (3 x 3).
constexpr int64_t kWinogradChannels = 32;

class ForwardSlot {
 public:
  ForwardSlot(const StripPlan& plan, const ConvBlock2dForward& call, const float* weights,
              float* scratch)
      : plan_(plan),
        call_(call),
        shape_(call.shape),
        kernels_(conv_block2d_kernels(plan.isa)),
        strip_(plan, shape_.conv, weights, call.bias, scratch,
               scratch + plan.image_floats(shape_.conv)),
        pooled_(scratch + plan.image_floats(shape_.conv) + plan.strip_floats(shape_.conv)) {}

  // What run() reads and writes for an image.
  void fetch(int64_t image) const {
    const int64_t outputs = shape_.conv.out_channels * shape_.cells();
    fetch_image(shape_.conv, call_.input, call_.input_strides, image);
    fetch_bytes(call_.output + image * outputs, outputs * 4);
    if (call_.offsets != nullptr) fetch_bytes(call_.offsets + image * outputs, outputs);
  }

  void run(int64_t image) {
    strip_.load_image(call_.input + image * call_.input_strides.batch, call_.input_strides);
    const int64_t outputs = shape_.conv.out_channels * shape_.cells();
    output_ = call_.output + image * outputs;
    offsets_ = call_.offsets == nullptr ? nullptr : call_.offsets + image * outputs;
    for (int64_t first = 0; first < plan_.used_rows; first += plan_.strip_rows) {
      const int64_t rows = std::min(plan_.strip_rows, plan_.used_rows - first);
      if (plan_.layout == StripLayout::kPixels) {
        strip_.compute(first, rows, 0, shape_.conv.out_channels);
        pool_pixels(first / 2, rows / 2);
        continue;
      }
      for (int64_t o = 0; o < shape_.conv.out_channels; o += plan_.block_channels) {
        const int64_t count = std::min(plan_.block_channels, shape_.conv.out_channels - o);
        strip_.compute(first, rows, o, count);
        pool_channels(first / 2, rows / 2, o, count);
      }
    }
  }

 private:
  // `first` and `rows` count pooled rows.
  void pool_pixels(int64_t first, int64_t rows) const {
    const auto pool =
        kernels_.pool_pixels[static_cast<int>(shape_.pool)][static_cast<int>(shape_.activation)];
    const int64_t width = shape_.pooled_width(), pitch = plan_.used_columns;
    for (int64_t o = 0; o < shape_.conv.out_channels; ++o)
      for (int64_t i = 0; i < rows; ++i) {
        const float* top = strip_.strip() + (o * plan_.strip_rows + 2 * i) * pitch;
        const int64_t at = o * shape_.cells() + (first + i) * width;
        pool({top, top + pitch, width, shape_.negative_slope, output_ + at,
              offsets_ == nullptr ? nullptr : offsets_ + at});
      }
  }

  void pool_channels(int64_t first, int64_t rows, int64_t channel, int64_t count) const {
    const auto pool =
        kernels_.pool_channels[static_cast<int>(shape_.pool)][static_cast<int>(shape_.activation)];
    const int64_t width = shape_.pooled_width(), pitch = plan_.used_columns * count;
    const int64_t channels = shape_.conv.out_channels;
    for (int64_t i = 0; i < rows; ++i) {
      const float* top = strip_.strip() + 2 * i * pitch;
      uint8_t* offsets =
          offsets_ == nullptr ? nullptr : offsets_ + (first + i) * width * channels + channel;
      pool({top, top + pitch, count, width, count, shape_.negative_slope,
            pooled_ + i * width * count, offsets, channels});
    }
    conv2d_kernels(plan_.isa).copy_block({count, rows * width, pooled_, 1, count,
                                          output_ + channel * shape_.cells() + first * width,
                                          shape_.cells(), 1});
  }

  const StripPlan& plan_;
  const ConvBlock2dForward& call_;
  const ConvBlock2dShape& shape_;
  const ConvBlock2dKernels& kernels_;
  ConvStrip strip_;
  float* pooled_;
  float* output_ = nullptr;
  uint8_t* offsets_ = nullptr;
};

}  // namespace

bool conv_block2d_applies(const ConvBlock2dShape& shape) {
  const Conv2dShape& s = shape.conv;
  if (s.groups != 1 || s.stride_height != 1 || s.stride_width != 1 || s.dilation_height != 1 ||
      s.dilation_width != 1 || s.kernel_height > kMaxBlockKernelHeight ||
      s.kernel_width > kMaxKernelWidth || shape.cells() < 1 || s.in_channels < 1 ||
      s.out_channels < 1)
    return false;
  if (shape.activation == Activation::kLeakyRelu && !(shape.negative_slope >= 0)) return false;
  if (s.kernel_height == 3 && s.kernel_width == 3 && s.in_channels >= kWinogradChannels)
    return false;
  const int64_t height = 2 * shape.pooled_height() + s.kernel_height - 1;
  const int64_t width = 2 * shape.pooled_width() + s.kernel_width - 1;
  return std::max(s.in_channels, s.out_channels) * height * width <= kMaxImageFloats &&
         s.multiply_adds() <= kMaxImageMultiplyAdds * std::max<int64_t>(s.batch, 1);
}

int64_t conv_block2d_offset_bytes(const ConvBlock2dShape& shape) {
  return shape.pool == BlockPool::kMax ? shape.conv.out_channels * shape.cells() : 0;
}

ConvBlock2dPlan plan_conv_block2d_forward(const ConvBlock2dForward& call) {
  const Conv2dShape& s = call.shape.conv;
  const StripPlan strip(call.shape, choose_strip_layout(call.shape), active_isa());
  ConvBlock2dPlan plan{};
  plan.isa = strip.isa;
  plan.slots = std::min(worthwhile_threads(s.multiply_adds(), 0), s.batch);
  const int64_t pooled = strip.layout == StripLayout::kChannels
                             ? strip.strip_rows * strip.used_columns / 4 * strip.block_channels
                             : 0;
  plan.slot_floats = strip.image_floats(s) + strip.strip_floats(s) + round_up(pooled, 16);
  plan.scratch_floats = strip.weight_floats(s) + plan.slots * plan.slot_floats;
  return plan;
}

void conv_block2d_forward(const ConvBlock2dPlan& plan, const ConvBlock2dForward& call,
                          float* scratch) {
  const Conv2dShape& s = call.shape.conv;
  const StripPlan strip(call.shape, choose_strip_layout(call.shape), plan.isa);
  record_kernel(KernelId::kConvBlock2dForward,
                strip.layout == StripLayout::kChannels ? "channel_strips" : "pixel_strips",
                plan.isa);
  pack_strip_weights(strip, s, call.weight, scratch);
  float* slots = scratch + strip.weight_floats(s);
  parallel_for(plan.slots, [&](int64_t slot) {
    ForwardSlot work(strip, call, scratch, slots + slot * plan.slot_floats);
    const int64_t last = s.batch * (slot + 1) / plan.slots;
    const bool ahead = fetches_ahead(call.shape);
    for (int64_t n = s.batch * slot / plan.slots; n < last; ++n) {
      if (ahead && n + 1 < last) work.fetch(n + 1);
      work.run(n);
    }
  });
}

}  // namespace fastconv::cpu
