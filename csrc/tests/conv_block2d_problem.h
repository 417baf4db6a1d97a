// SPDX-License-Identifier: MIT
// The fused block by plain loops in double precision, with random operands: what the tests of the
// CPU's and of the CUDA kernels share. `Shape` is the ConvBlock2dShape of either.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "common/activation.h"
#include "common/shapes.h"

namespace fastconv::testing {

struct BlockCase {
  int64_t batch, in_channels, height, width, out_channels, kernel_height, kernel_width, padding;
};

template <class Shape>
Shape shape_of(const BlockCase& c, Activation activation, decltype(Shape::pool) pool) {
  Conv2dShape s{};
  s.batch = c.batch;
  s.in_channels = c.in_channels;
  s.in_height = c.height;
  s.in_width = c.width;
  s.out_channels = c.out_channels;
  s.kernel_height = c.kernel_height;
  s.kernel_width = c.kernel_width;
  s.padding_height = s.padding_width = c.padding;
  s.stride_height = s.stride_width = s.dilation_height = s.dilation_width = s.groups = 1;
  s.out_height = c.height + 2 * c.padding - c.kernel_height + 1;
  s.out_width = c.width + 2 * c.padding - c.kernel_width + 1;
  return {s, activation, 0.125f, pool};
}

inline double value_of(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu:
      return x > 0 ? x : 0;
    case Activation::kLeakyRelu:
      return x > 0 ? x : 0.125 * x;
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kNone:
      break;
  }
  return x;
}

inline double derivative_of(Activation activation, double x) {
  const double y = value_of(activation, x);
  switch (activation) {
    case Activation::kRelu:
      return x > 0 ? 1 : 0;
    case Activation::kLeakyRelu:
      return x > 0 ? 1 : 0.125;
    case Activation::kSigmoid:
      return y * (1 - y);
    case Activation::kTanh:
      return 1 - y * y;
    case Activation::kNone:
      break;
  }
  return 1;
}

struct BlockTensors {
  template <class Shape>
  BlockTensors(const Shape& shape, bool whole, Numbers& numbers)
      : input(shape.conv.batch * shape.conv.in_channels * shape.conv.in_pixels()),
        weight(shape.conv.out_channels * shape.conv.in_channels * shape.conv.taps()),
        bias(shape.conv.out_channels),
        grad(shape.conv.batch * shape.conv.out_channels * shape.cells()) {
    for (Floats* tensor : {&input, &weight, &bias, &grad})
      for (int64_t i = 0; i < tensor->size(); ++i)
        (*tensor)[i] = whole ? numbers.whole() : 0.3f * numbers.real();
  }
  Floats input, weight, bias, grad;
};

// Everything the fused block computes, in double precision.
struct BlockExpected {
  std::vector<double> output, grad_input, grad_weight, grad_bias;
  std::vector<int> taps;  // the winning ones, [N, channels, cells]
};

template <class Shape>
class BlockOracle {
 public:
  BlockOracle(const Shape& shape, const BlockTensors& t) : shape_(shape), s_(shape.conv), t_(t) {}

  BlockExpected run() {
    result_.grad_input.assign(t_.input.size(), 0);
    result_.grad_weight.assign(t_.weight.size(), 0);
    result_.grad_bias.assign(s_.out_channels, 0);
    for (int64_t n = 0; n < s_.batch; ++n)
      for (int64_t o = 0; o < s_.out_channels; ++o)
        for (int64_t i = 0; i < shape_.pooled_height(); ++i)
          for (int64_t j = 0; j < shape_.pooled_width(); ++j) pool(n, o, i, j);
    return result_;
  }

 private:
  // Calls visit(input index, weight index) for the taps of one pixel inside the image.
  template <typename Visit>
  void for_each_tap(int64_t n, int64_t o, int64_t i, int64_t j, const Visit& visit) const {
    for (int64_t c = 0; c < s_.in_channels; ++c)
      for (int64_t r = 0; r < s_.kernel_height; ++r)
        for (int64_t q = 0; q < s_.kernel_width; ++q) {
          const int64_t y = i + r - s_.padding_height, x = j + q - s_.padding_width;
          if (y < 0 || x < 0 || y >= s_.in_height || x >= s_.in_width) continue;
          visit(((n * s_.in_channels + c) * s_.in_height + y) * s_.in_width + x,
                ((o * s_.in_channels + c) * s_.kernel_height + r) * s_.kernel_width + q);
        }
  }

  double convolve(int64_t n, int64_t o, int64_t i, int64_t j) const {
    double sum = t_.bias[o];
    for_each_tap(n, o, i, j, [&](int64_t x, int64_t w) {
      sum += static_cast<double>(t_.input[x]) * t_.weight[w];
    });
    return sum;
  }

  void add_gradient(int64_t n, int64_t o, int64_t i, int64_t j, double grad) {
    result_.grad_bias[o] += grad;
    for_each_tap(n, o, i, j, [&](int64_t x, int64_t w) {
      result_.grad_input[x] += grad * t_.weight[w];
      result_.grad_weight[w] += grad * t_.input[x];
    });
  }

  // One cell of the output: a window of four pixels, or without pooling one.
  void pool(int64_t n, int64_t o, int64_t i, int64_t j) {
    const int side = shape_.cells() == s_.out_pixels() ? 1 : 2;
    const bool is_max = shape_.pool == decltype(Shape::pool)::kMax;
    double z[4], sum = 0;
    int best = 0;
    for (int tap = 0; tap < side * side; ++tap) {
      z[tap] = convolve(n, o, side * i + tap / 2, side * j + tap % 2);
      sum += value_of(shape_.activation, z[tap]);
      if (z[tap] > z[best]) best = tap;
    }
    const double grad = t_.grad[static_cast<int64_t>(result_.output.size())];
    result_.output.push_back(is_max ? value_of(shape_.activation, z[best]) : sum / (side * side));
    result_.taps.push_back(best);
    for (int tap = 0; tap < side * side; ++tap) {
      if (is_max && tap != best) continue;
      const double slope = derivative_of(shape_.activation, z[tap]);
      add_gradient(n, o, side * i + tap / 2, side * j + tap % 2,
                   grad * slope / (is_max ? 1 : side * side));
    }
  }

  const Shape& shape_;
  const Conv2dShape& s_;
  const BlockTensors& t_;
  BlockExpected result_;
};

// Largest difference in units of the largest expected value, or of `least`: the sum of many terms
// of both signs may be small by chance.
inline double distance(const Floats& got, const std::vector<double>& want, double least = 1e-6) {
  double largest = least, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::fmax(largest, std::fabs(want[i]));
    const double error = std::fabs(got[static_cast<int64_t>(i)] - want[i]);
    worst = std::isnan(error) ? 1e30 : std::fmax(worst, error);
  }
  return worst / largest;
}

// Room for all results of the kernels.
struct BlockResults {
  template <class Shape>
  explicit BlockResults(const Shape& shape)
      : output(shape.conv.batch * shape.conv.out_channels * shape.cells()),
        grad_input(shape.conv.batch * shape.conv.in_channels * shape.conv.in_pixels()),
        grad_weight(shape.conv.out_channels * shape.conv.in_channels * shape.conv.taps()),
        grad_bias(shape.conv.out_channels),
        offsets(static_cast<size_t>(shape.conv.batch * conv_block2d_offset_bytes(shape))) {}
  Floats output, grad_input, grad_weight, grad_bias;
  std::vector<uint8_t> offsets;
};

}  // namespace fastconv::testing
