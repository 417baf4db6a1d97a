// SPDX-License-Identifier: MIT
// The backward pass: per image, the gradients of the pooled values become a sparse gradient of the
// convolution's output, one value per window for max pooling, that feeds the three gradients at
// once. All work on an image copied as [row, column, channel], in which the patch under a kernel
// row is contiguous:
//
//   weights  per output channel, the patches of its values, weighted, summed in registers
//   input    per pixel, the kernels of the channels that have a value there, summed in registers
//   bias     the sum of the values
//
// A patch of a one-channel image fills a third of a vector or less. There the weight gradient runs
// along the pixels instead, through conv2d's dot tiles on the gradient with its zeros, where the
// estimate below prefers that.
//
// Behind an average the gradient is dense: conv_block2d_backward_channels.cpp where the output
// channels fill vectors, else the same tiles as above on every pixel.
//
// Each slot keeps its own weight and bias sums, which are added at the end in slot order.
#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "common/checked.h"
#include "common/summation.h"
#include "cpu/conv2d/conv2d_dots.h"
#include "cpu/conv_block2d/conv_block2d_backward.h"
#include "cpu/conv_block2d/conv_block2d_fetch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

class BackwardSlot {
 public:
  BackwardSlot(const BackwardLayout& layout, const ConvBlock2dBackward& call, const float* shared,
               float* slot)
      : l_(layout),
        call_(call),
        shape_(call.shape),
        s_(call.shape.conv),
        kernels_(conv_block2d_kernels(layout.strip.isa)),
        weights_(shared),
        slot_(slot) {
    std::memset(slot_, 0, sizeof(float) * l_.image);
    // Borders and slack stay zero for all images.
    std::memset(slot_ + l_.image, 0, sizeof(float) * l_.image_floats);
    const int64_t step = l_.is_max ? 2 : 1;
    for (int64_t i = 0; i < l_.strip.used_rows; i += step)
      for (int64_t j = 0; j < l_.strip.used_columns; j += step) {
        starts_.push_back(static_cast<int32_t>(i * patch_row() + j * patch_column()));
        pixels_.push_back(static_cast<int32_t>(i / 2 * 2 * l_.strip.used_columns + j / 2 * 4 +
                                               i % 2 * 2 + j % 2));
      }
    steps_[1] = static_cast<int32_t>(patch_column());
    steps_[2] = static_cast<int32_t>(patch_row());
    steps_[3] = steps_[1] + steps_[2];
  }

  // What run() reads and writes for an image.
  void fetch(int64_t image) const {
    const int64_t outputs = s_.out_channels * shape_.cells();
    fetch_bytes(call_.grad_output + image * outputs, outputs * 4);
    if (l_.is_max) {
      fetch_bytes(call_.output + image * outputs, outputs * 4);
      fetch_bytes(call_.offsets + image * outputs, outputs);
    }
    fetch_image(s_, call_.input, call_.input_strides, image);
    const int64_t inputs = s_.in_channels * s_.in_pixels();
    if (call_.grad_input != nullptr) fetch_bytes(call_.grad_input + image * inputs, inputs * 4);
  }

  void run(int64_t image, ConvStrip* recomputed) {
    load_image(image);
    if (l_.is_max) {
      scale_grads(image);
    } else {
      spread_grads(image, recomputed);
    }
    if (call_.grad_weight != nullptr) {
      if (l_.dots) {
        add_dots(image);
      } else {
        if (l_.patches) copy_patches();
        add_weight_grads(image);
      }
    }
    if (call_.grad_input != nullptr) {
      list_entries(image);
      compute_grad_input(image);
    }
  }

  // Sums over the lanes, once all images are through.
  void finish() {
    if (!l_.dots) return;
    const Conv2dKernels& kernels = conv2d_kernels(l_.strip.isa);
    const float* part = slot_ + l_.lane_sums;
    for (int64_t o = 0; o < s_.out_channels; ++o)
      for (int64_t r = 0; r < s_.kernel_height; ++r, part += s_.kernel_width * l_.lanes)
        kernels.add_lanes(part, s_.kernel_width,
                          slot_ + l_.sums + o * l_.weight_pitch + r * l_.patch_pitch);
  }

 private:
  // The image as [row, column, channel] without its border, which stays zero.
  void load_image(int64_t image) {
    const Strides4& in = call_.input_strides;
    const int64_t c = s_.in_channels;
    const int64_t top = s_.padding_height, left = s_.padding_width;
    const int64_t rows = std::min(s_.in_height, l_.strip.height - top);
    const int64_t columns = std::min(s_.in_width, l_.strip.width - left);
    const float* source = call_.input + image * in.batch;
    float* target = slot_ + l_.image + (top * l_.strip.width + left) * c;
    const Conv2dKernels& movers = conv2d_kernels(l_.strip.isa);
    if (columns == l_.strip.width && in.row == columns && in.column == 1) {
      movers.copy_block({c, rows * columns, source, in.channel, 1, target, 1, c});
      return;
    }
    for (int64_t i = 0; i < rows; ++i)
      movers.copy_block({c, columns, source + i * in.row, in.channel, in.column,
                         target + i * l_.strip.width * c, 1, c});
  }

  int64_t activation() const { return static_cast<int64_t>(shape_.activation); }

  void scale_grads(int64_t image) {
    const int64_t first = image * s_.out_channels;
    for (int64_t o = 0; o < s_.out_channels; ++o)
      kernels_.scale_grad[activation()]({call_.grad_output + (first + o) * l_.values,
                                         call_.output + (first + o) * l_.values, l_.values,
                                         shape_.negative_slope, slot_ + l_.grads + o * l_.values,
                                         slot_ + l_.bias_sums + o});
  }

  void spread_grads(int64_t image, ConvStrip* recomputed) {
    const StripPlan& p = l_.strip;
    const int64_t width = shape_.pooled_width(), columns = p.used_columns;
    if (recomputed != nullptr)
      recomputed->load_image(call_.input + image * call_.input_strides.batch, call_.input_strides);
    for (int64_t first = 0; first < p.used_rows; first += p.strip_rows) {
      const int64_t rows = std::min(p.strip_rows, p.used_rows - first);
      if (recomputed != nullptr) recomputed->compute(first, rows, 0, s_.out_channels);
      for (int64_t o = 0; o < s_.out_channels; ++o)
        for (int64_t i = 0; i < rows; i += 2) {
          float* target = slot_ + l_.grads + o * l_.values + (first + i) * columns;
          // Without an activation nothing depends on z: any readable memory will do.
          const float* z = recomputed == nullptr
                               ? slot_ + l_.image
                               : recomputed->strip() + (o * p.strip_rows + i) * columns;
          kernels_.spread_grad[activation()](
              {z, recomputed == nullptr ? z : z + columns,
               call_.grad_output + (image * s_.out_channels + o) * shape_.cells() +
                   (first + i) / 2 * width,
               width, shape_.negative_slope, target, target + columns, slot_ + l_.bias_sums + o});
        }
    }
  }

  // The weight gradient of a one-channel image along its pixels.
  void add_dots(int64_t image) {
    const StripPlan& p = l_.strip;
    const int64_t pixels = p.used_rows * p.used_columns;
    if (l_.is_max)
      for (int64_t o = 0; o < s_.out_channels; ++o)
        kernels_.spread_winners({slot_ + l_.grads + o * l_.values, offsets(image, o),
                                 shape_.pooled_height(), shape_.pooled_width(),
                                 slot_ + l_.spread + o * pixels});
    DotTile strip{};
    strip.rows = p.used_rows;
    strip.width = p.used_columns;
    strip.line_pitch = p.width;
    strip.grad = slot_ + l_.spread;
    strip.grad_channel = pixels;
    strip.grad_row = p.used_columns;
    strip.sums = slot_ + l_.lane_sums;
    cpu::add_dots(
        conv2d_kernels(p.isa).dot, l_.lanes, strip, s_.taps(), s_.out_channels, [&](int64_t tap) {
          return slot_ + l_.image + tap / s_.kernel_width * p.width + tap % s_.kernel_width;
        });
  }

  const uint8_t* offsets(int64_t image, int64_t o) const {
    if (!l_.is_max) return nullptr;
    return call_.offsets + image * s_.out_channels * shape_.cells() +
           o * (l_.offset_channels ? 1 : shape_.cells());
  }
  int64_t offset_pitch() const { return l_.offset_channels ? s_.out_channels : 1; }

  // Where the patches of neighbouring pixels lie, in a row and from row to row.
  int64_t patch_column() const { return l_.patches ? l_.patch_pitch : s_.in_channels; }
  int64_t patch_row() const {
    return l_.patches ? l_.strip.used_columns * l_.patch_pitch : l_.strip.width * s_.in_channels;
  }

  // Every patch to where a vector starts: a load that crosses a cache line costs two, and each
  // patch is loaded for many channels.
  void copy_patches() {
    const Conv2dKernels& movers = conv2d_kernels(l_.strip.isa);
    for (int64_t i = 0; i < l_.strip.height; ++i)
      movers.copy_block({l_.strip.used_columns, l_.patch_pitch,
                         slot_ + l_.image + i * l_.strip.width * s_.in_channels, s_.in_channels, 1,
                         slot_ + l_.patch_image + i * patch_row(), l_.patch_pitch, 1});
  }

  void add_weight_grads(int64_t image) {
    SparseWeightTile tile{};
    tile.offset_pitch = offset_pitch();
    tile.steps = steps_;
    tile.row_pitch = patch_row();
    tile.sum_pitch = l_.patch_pitch;
    tile.grad_channel = l_.values;
    tile.sum_channel = l_.weight_pitch;
    for_each_patch_tile(l_, [&](int64_t lane, int64_t vectors) {
      const int row = static_cast<int>(s_.kernel_height - 1),
                column = static_cast<int>(vectors - 1);
      const int64_t most = l_.is_max ? 1 : kernels_.dense_channels[row][column];
      tile.input = slot_ + (l_.patches ? l_.patch_image : l_.image) + lane;
      for (int64_t o = 0; o < s_.out_channels;) {
        const int64_t channels = s_.out_channels - o >= most ? most : 1;
        const auto multiply =
            channels > 1 ? kernels_.dense_weight[row][column] : kernels_.sparse_weight[row][column];
        const uint8_t* taps = offsets(image, o);
        tile.sums = slot_ + l_.sums + o * l_.weight_pitch + lane;
        for (int64_t first = 0; first < l_.values; first += kMaxTerms) {
          tile.count = std::min(kMaxTerms, l_.values - first);
          tile.grad = slot_ + l_.grads + o * l_.values + first;
          tile.starts = starts_.data() + first;
          tile.offsets = taps == nullptr ? nullptr : taps + first * tile.offset_pitch;
          multiply(tile);
        }
        o += channels;
      }
    });
  }

  GradLists lists() const {
    return {s_.out_channels, reinterpret_cast<int32_t*>(slot_ + l_.counts), slot_ + l_.list_grads,
            reinterpret_cast<int32_t*>(slot_ + l_.list_weights)};
  }

  // Sorts the gradient values by pixel; zeros, of which ReLU makes many, are left out.
  void list_entries(int64_t image) {
    if (l_.is_max && l_.offset_channels) {
      conv2d_kernels(l_.strip.isa)
          .copy_block({s_.out_channels, l_.values, slot_ + l_.grads, l_.values, 1,
                       slot_ + l_.cell_grads, 1, l_.out_pitch});
      kernels_.list_winners({slot_ + l_.cell_grads, l_.out_pitch, offsets(image, 0), l_.values,
                             s_.out_channels, static_cast<int32_t>(l_.weight_pitch), lists()});
      return;
    }
    const GradLists lists = this->lists();
    std::memset(lists.counts, 0, sizeof(int32_t) * l_.strip.used_rows * l_.strip.used_columns);
    for (int64_t o = 0; o < s_.out_channels; ++o) {
      const float* grad = slot_ + l_.grads + o * l_.values;
      const uint8_t* tap = offsets(image, o);
      const auto weights = static_cast<int32_t>(o * l_.weight_pitch);
      for (int64_t i = 0; i < l_.values; ++i) {
        const int32_t pixel = pixels_[i] + (tap == nullptr ? 0 : tap[i]);
        const int32_t count = lists.counts[pixel];
        lists.grads[pixel * lists.pitch + count] = grad[i];
        lists.weights[pixel * lists.pitch + count] = weights;
        lists.counts[pixel] = count + (grad[i] != 0.0f);
      }
    }
  }

  void compute_grad_input(int64_t image) {
    const int64_t c = s_.in_channels;
    float* strip = slot_ + l_.grad_image;
    std::memset(strip, 0, sizeof(float) * l_.image_floats);
    SparseInputTile tile{};
    tile.rows = l_.strip.used_rows;
    tile.columns = l_.strip.used_columns;
    tile.lists = lists();
    tile.weight_pitch = l_.patch_pitch;
    tile.row_pitch = l_.strip.width * c;
    tile.column_pitch = c;
    for_each_patch_tile(l_, [&](int64_t lane, int64_t vectors) {
      tile.weights = weights_ + lane;
      tile.strip = strip + lane;
      tile.tail = patch_tail(l_, lane, vectors);
      kernels_.sparse_input[s_.kernel_height - 1][vectors - 1](tile);
    });
    store_grad_input(l_, call_, image, strip);
  }

  const BackwardLayout& l_;
  const ConvBlock2dBackward& call_;
  const ConvBlock2dShape& shape_;
  const Conv2dShape& s_;
  const ConvBlock2dKernels& kernels_;
  const float* weights_;
  float* slot_;
  std::vector<int32_t> starts_;  // of each value's patch in the image, at tap 0
  std::vector<int32_t> pixels_;  // its number in the lists, at tap 0
  int32_t steps_[4] = {0, 0, 0, 0};
};

// patches[o][r][(q, c)] of weights [o][c][r][q]; zero up to the patch pitch.
void pack_patches(const BackwardLayout& l, const float* weight, float* patches) {
  const Conv2dShape& s = l.shape.conv;
  std::memset(patches, 0, sizeof(float) * s.out_channels * l.weight_pitch);
  for (int64_t o = 0; o < s.out_channels; ++o)
    for (int64_t c = 0; c < s.in_channels; ++c)
      for (int64_t r = 0; r < s.kernel_height; ++r)
        for (int64_t q = 0; q < s.kernel_width; ++q)
          patches[o * l.weight_pitch + r * l.patch_pitch + q * s.in_channels + c] = *weight++;
}

void unpack_patches(const BackwardLayout& l, const float* patches, float* weight) {
  const Conv2dShape& s = l.shape.conv;
  for (int64_t o = 0; o < s.out_channels; ++o)
    for (int64_t c = 0; c < s.in_channels; ++c)
      for (int64_t r = 0; r < s.kernel_height; ++r)
        for (int64_t q = 0; q < s.kernel_width; ++q)
          *weight++ = patches[o * l.weight_pitch + r * l.patch_pitch + q * s.in_channels + c];
}

}  // namespace

ConvBlock2dPlan plan_conv_block2d_backward(const ConvBlock2dBackward& call) {
  const Conv2dShape& s = call.shape.conv;
  ConvBlock2dPlan plan{};
  plan.isa = active_isa();
  plan.slots = std::min(worthwhile_threads(2 * s.multiply_adds(), 0), s.batch);
  const BackwardLayout layout(call, plan.isa);
  plan.slot_floats = layout.floats;
  plan.scratch_floats = layout.shared_floats() + plan.slots * plan.slot_floats;
  return plan;
}

void conv_block2d_backward(const ConvBlock2dPlan& plan, const ConvBlock2dBackward& call,
                           float* scratch) {
  const Conv2dShape& s = call.shape.conv;
  const BackwardLayout layout(call, plan.isa);
  record_kernel(KernelId::kConvBlock2dBackward,
                layout.is_max     ? "sparse"
                : layout.channels ? "dense_channels"
                                  : "dense",
                plan.isa);
  if (layout.wants_input) pack_patches(layout, call.weight, scratch);
  float* strip_weights = scratch + layout.strip_weights();
  if (layout.recomputes) pack_strip_weights(layout.strip, s, call.weight, strip_weights);
  float* slots = scratch + layout.shared_floats();
  parallel_for(plan.slots, [&](int64_t slot) {
    float* memory = slots + slot * plan.slot_floats;
    const int64_t first = s.batch * slot / plan.slots, last = s.batch * (slot + 1) / plan.slots;
    const bool ahead = fetches_ahead(call.shape);
    if (layout.channels) {
      ChannelsBackward work(layout, call, scratch, memory);
      for (int64_t n = first; n < last; ++n) {
        if (ahead && n + 1 < last) work.fetch(n + 1);
        work.run(n);
      }
      return;
    }
    BackwardSlot work(layout, call, scratch, memory);
    std::optional<ConvStrip> recomputed;
    if (layout.recomputes)
      recomputed.emplace(layout.strip, s, strip_weights, call.bias, memory + layout.plain_image,
                         memory + layout.conv_strip);
    for (int64_t n = first; n < last; ++n) {
      if (ahead && n + 1 < last) work.fetch(n + 1);
      work.run(n, recomputed.has_value() ? &*recomputed : nullptr);
    }
    work.finish();
  });
  float* total = slots + layout.sums;
  for (int64_t slot = 1; slot < plan.slots; ++slot) {
    const float* part = total + slot * plan.slot_floats;
    for (int64_t i = 0; i < layout.sum_floats; ++i) total[i] += part[i];
  }
  if (call.grad_weight != nullptr)
    (layout.channels ? store_channel_sums : unpack_patches)(layout, total, call.grad_weight);
  if (call.grad_bias != nullptr)
    std::copy_n(slots + layout.bias_sums, s.out_channels, call.grad_bias);
}

}  // namespace fastconv::cpu
