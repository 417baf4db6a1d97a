// SPDX-License-Identifier: MIT
// The CUDA kernels of the fused block in the emulator, against plain loops in double precision:
// every schedule, every pooling, several tiles and blocks. Run under the sanitizers; values, ties
// and parity are python_tests/test_cuda_shim_conv_block2d.py.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/conv_block2d/conv_block2d.h"
#include "tests/cuda_shim/emulator.h"

namespace {

using namespace fastconv;
using cuda::BlockPool;
using cuda::ConvBlock2dShape;
using fastconv::testing::Floats;
using fastconv::testing::Numbers;

constexpr cuda::Device kDevice{80, 4, 96 * 1024, 100 * 1024};

struct Case {
  int64_t batch, in_channels, height, width, out_channels, kernel_height, kernel_width, padding;
};

constexpr Case kCases[] = {
    {3, 1, 12, 11, 6, 5, 5, 2},  // several tiles of an image
    {5, 3, 6, 6, 17, 3, 3, 1},   // several images in a tile, several blocks of channels
    {1, 2, 9, 9, 3, 7, 7, 3},    //
    {2, 40, 5, 6, 4, 2, 3, 0},   // any kernel size, several chunks of channels and weights
    {2, 2, 4, 3, 2, 3, 3, 4},    // padding wider than the kernel
    {9, 33, 2, 2, 3, 1, 1, 0},   //
};

ConvBlock2dShape shape_of(const Case& c, Activation activation, BlockPool pool) {
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

double value_of(Activation activation, double x) {
  if (activation == Activation::kRelu) return x > 0 ? x : 0;
  return activation == Activation::kTanh ? std::tanh(x) : x;
}

double slope_of(Activation activation, double x) {
  if (activation == Activation::kRelu) return x > 0 ? 1 : 0;
  return activation == Activation::kTanh ? 1 - std::tanh(x) * std::tanh(x) : 1;
}

struct Tensors {
  explicit Tensors(const ConvBlock2dShape& shape)
      : input(shape.conv.batch * shape.conv.in_channels * shape.conv.in_pixels()),
        weight(shape.conv.out_channels * shape.conv.in_channels * shape.conv.taps()),
        bias(shape.conv.out_channels),
        grad(shape.conv.batch * shape.conv.out_channels * shape.cells()) {
    Numbers numbers(7);
    for (Floats* tensor : {&input, &weight, &bias, &grad})
      for (int64_t i = 0; i < tensor->size(); ++i) (*tensor)[i] = 0.3f * numbers.real();
  }
  Floats input, weight, bias, grad;
};

struct Expected {
  std::vector<double> output, grad_input, grad_weight, grad_bias;
};

class Oracle {
 public:
  Oracle(const ConvBlock2dShape& shape, const Tensors& t) : shape_(shape), s_(shape.conv), t_(t) {}

  Expected run() {
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

  void pool(int64_t n, int64_t o, int64_t i, int64_t j) {
    const int taps = shape_.pool == BlockPool::kNone ? 1 : 4;
    const int64_t step = taps == 1 ? 1 : 2;
    double z[4], sum = 0;
    int best = 0;
    for (int tap = 0; tap < taps; ++tap) {
      z[tap] = t_.bias[o];
      for_each_tap(n, o, step * i + tap / 2, step * j + tap % 2, [&](int64_t x, int64_t w) {
        z[tap] += static_cast<double>(t_.input[x]) * t_.weight[w];
      });
      sum += value_of(shape_.activation, z[tap]);
      if (z[tap] > z[best]) best = tap;
    }
    const double grad = t_.grad[static_cast<int64_t>(result_.output.size())];
    const bool is_max = shape_.pool == BlockPool::kMax;
    result_.output.push_back(is_max ? value_of(shape_.activation, z[best]) : sum / taps);
    for (int tap = 0; tap < taps; ++tap) {
      if (is_max && tap != best) continue;
      const double g = grad * slope_of(shape_.activation, z[tap]) / (is_max ? 1 : taps);
      result_.grad_bias[o] += g;
      for_each_tap(n, o, step * i + tap / 2, step * j + tap % 2, [&](int64_t x, int64_t w) {
        result_.grad_input[x] += g * t_.weight[w];
        result_.grad_weight[w] += g * t_.input[x];
      });
    }
  }

  const ConvBlock2dShape& shape_;
  const Conv2dShape& s_;
  const Tensors& t_;
  Expected result_;
};

double distance(const Floats& got, const std::vector<double>& want) {
  double largest = 1, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::fmax(largest, std::fabs(want[i]));
    const double error = std::fabs(got[static_cast<int64_t>(i)] - want[i]);
    worst = std::isnan(error) ? 1e30 : std::fmax(worst, error);
  }
  return worst / largest;
}

struct Results {
  explicit Results(const ConvBlock2dShape& shape)
      : output(shape.conv.batch * shape.conv.out_channels * shape.cells()),
        grad_input(shape.conv.batch * shape.conv.in_channels * shape.conv.in_pixels()),
        grad_weight(shape.conv.out_channels * shape.conv.in_channels * shape.conv.taps()),
        grad_bias(shape.conv.out_channels),
        offsets(static_cast<size_t>(shape.conv.batch * conv_block2d_offset_bytes(shape))) {}
  Floats output, grad_input, grad_weight, grad_bias;
  std::vector<uint8_t> offsets;
};

void run(const ConvBlock2dShape& shape, const Tensors& t, Results* r) {
  const Conv2dShape& s = shape.conv;
  const Strides4 strides = contiguous_strides(s.in_channels, s.in_height, s.in_width);
  uint8_t* offsets = r->offsets.empty() ? nullptr : r->offsets.data();
  CHECK(cuda::launch_conv_block2d_forward({shape, kDevice, t.input.data(), strides, t.weight.data(),
                                           t.bias.data(), r->output.data(), offsets},
                                          nullptr) == cudaSuccess);
  cuda::ConvBlock2dBackward backward{shape,
                                     kDevice,
                                     t.grad.data(),
                                     r->output.data(),
                                     offsets,
                                     t.input.data(),
                                     strides,
                                     t.weight.data(),
                                     t.bias.data(),
                                     r->grad_input.data(),
                                     r->grad_weight.data(),
                                     r->grad_bias.data(),
                                     nullptr};
  Floats workspace(cuda::conv_block2d_backward_workspace_bytes(backward) /
                   static_cast<int64_t>(sizeof(float)));
  backward.workspace = workspace.data();
  CHECK(cuda::launch_conv_block2d_backward(backward, nullptr) == cudaSuccess);
}

void test_case(const Case& c, Activation activation, BlockPool pool, cuda_shim::Schedule schedule) {
  const ConvBlock2dShape shape = shape_of(c, activation, pool);
  const std::string what = "case " + std::to_string(&c - kCases) + " pool " +
                           std::to_string(static_cast<int>(pool)) + " schedule " +
                           std::to_string(static_cast<int>(schedule));
  cuda_shim::Options options;
  options.schedule = schedule;
  options.seed = 3;
  cuda_shim::set_options(options);
  CHECK_WITH(conv_block2d_applies(shape), what);
  const Tensors tensors(shape);
  const Expected expected = Oracle(shape, tensors).run();
  Results results(shape);
  run(shape, tensors, &results);
  CHECK_WITH(distance(results.output, expected.output) < 1e-6, what + " output");
  CHECK_WITH(distance(results.grad_input, expected.grad_input) < 1e-6, what + " grad_input");
  CHECK_WITH(distance(results.grad_weight, expected.grad_weight) < 1e-6, what + " grad_weight");
  CHECK_WITH(distance(results.grad_bias, expected.grad_bias) < 1e-6, what + " grad_bias");
}

// The comparison must notice one wrong value.
void test_negative_control() {
  Floats got(2, 1.0f);
  CHECK(distance(got, {1, 1}) < 1e-6);
  got[1] += 1e-5f;
  CHECK(!(distance(got, {1, 1}) < 1e-6));
}

}  // namespace

int main() {
  for (int schedule = 0; schedule < cuda_shim::kSchedules; ++schedule)
    for (const Case& c : kCases)
      for (const BlockPool pool : {BlockPool::kNone, BlockPool::kMax, BlockPool::kAvg})
        test_case(c, pool == BlockPool::kMax ? Activation::kRelu : Activation::kTanh, pool,
                  static_cast<cuda_shim::Schedule>(schedule));
  test_negative_control();
  return fastconv::testing::report();
}
