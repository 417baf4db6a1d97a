// SPDX-License-Identifier: MIT
// Plain structs that carry sizes from the bindings to the kernels. Everything is int64_t and counts
// elements, never bytes. The bindings check the values; kernels rely on them.
#pragma once

#include <cstdint>

namespace fastconv {

// Element strides of a 4-D tensor [N, C, H, W]; NCHW and channels_last differ only here.
struct Strides4 {
  int64_t batch;
  int64_t channel;
  int64_t row;
  int64_t column;
};

inline Strides4 contiguous_strides(int64_t channels, int64_t height, int64_t width) {
  return {channels * height * width, height * width, width, 1};
}

inline Strides4 channels_last_strides(int64_t channels, int64_t height, int64_t width) {
  return {channels * height * width, 1, width * channels, channels};
}

// Sizes of one 2-D convolution, torch's definition (cross-correlation).
// Invariants: strides and dilations > 0, paddings >= 0, groups divides both channel counts.
struct Conv2dShape {
  int64_t batch;
  int64_t in_channels;
  int64_t in_height;
  int64_t in_width;
  int64_t out_channels;
  int64_t out_height;
  int64_t out_width;
  int64_t kernel_height;
  int64_t kernel_width;
  int64_t stride_height;
  int64_t stride_width;
  int64_t padding_height;
  int64_t padding_width;
  int64_t dilation_height;
  int64_t dilation_width;
  int64_t groups;

  int64_t group_in_channels() const { return in_channels / groups; }
  int64_t group_out_channels() const { return out_channels / groups; }
  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t in_pixels() const { return in_height * in_width; }
  int64_t out_pixels() const { return out_height * out_width; }
  int64_t multiply_adds() const {
    return batch * out_channels * out_pixels() * group_in_channels() * taps();
  }
};

// Sizes of one 2-D pooling window pass. `channels` counts planes per image.
// out_height and out_width already include ceil_mode.
struct Pool2dShape {
  int64_t batch;
  int64_t channels;
  int64_t in_height;
  int64_t in_width;
  int64_t out_height;
  int64_t out_width;
  int64_t kernel_height;
  int64_t kernel_width;
  int64_t stride_height;
  int64_t stride_width;
  int64_t padding_height;
  int64_t padding_width;
  int64_t dilation_height;
  int64_t dilation_width;

  int64_t taps() const { return kernel_height * kernel_width; }
};

// Sizes of one batch normalisation: `pixels` is the product of all dimensions behind the channels.
struct BatchNormShape {
  int64_t batch;
  int64_t channels;
  int64_t pixels;

  int64_t values() const { return batch * pixels; }  // per channel
  int64_t elements() const { return batch * channels * pixels; }
};

// Sizes of one LSTM layer in one direction. Rows are (step, sequence) pairs that exist; step t
// holds rows [first_row(t), first_row(t + 1)), longest sequences first, so that row r of a step
// belongs to the same sequence as row r of its neighbours.
struct LstmShape {
  int64_t steps;
  int64_t batch;             // sequences; those of length zero come last and own no row
  int64_t input;             // features of an input row
  int64_t hidden;            // units
  int64_t output;            // features of an output row: hidden, or the size of the projection
  bool projected;            // weight_hr turns `hidden` values into `output`
  bool reverse;              // from the last step of each sequence to the first
  const int64_t* row_start;  // [steps + 1], or nullptr when every step holds `batch` rows

  int64_t first_row(int64_t step) const {
    return row_start != nullptr ? row_start[step] : step * batch;
  }
  int64_t active(int64_t step) const {
    return row_start != nullptr ? row_start[step + 1] - row_start[step] : batch;
  }
  int64_t rows() const { return first_row(steps); }
  int64_t gates() const { return 4 * hidden; }
  // The n-th step in the order of computation, and the step before it in that order.
  int64_t nth_step(int64_t n) const { return reverse ? steps - 1 - n : n; }
  int64_t step_before(int64_t step) const { return reverse ? step + 1 : step - 1; }
  // Rows of `step` whose sequence also has the step before it; the others start there.
  int64_t continued(int64_t step) const {
    const int64_t before = step_before(step);
    if (before < 0 || before >= steps) return 0;
    return active(before) < active(step) ? active(before) : active(step);
  }
  int64_t multiply_adds() const {
    return rows() * (gates() * (input + output) + (projected ? hidden * output : 0));
  }
};

}  // namespace fastconv
