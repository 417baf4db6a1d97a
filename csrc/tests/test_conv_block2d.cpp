// SPDX-License-Identifier: MIT
// The fused block against plain loops in double precision, on every instruction set: forward,
// winning taps and the three gradients, with and without threads.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/conv_block2d/conv_block2d.h"

namespace {

using namespace fastconv;
using namespace fastconv::cpu;
using fastconv::testing::Floats;
using fastconv::testing::Numbers;

struct Case {
  int64_t batch, in_channels, height, width, out_channels, kernel_height, kernel_width, padding;
};

constexpr Case kCases[] = {
    {3, 1, 28, 28, 6, 5, 5, 2},    // LeNet-5
    {3, 6, 14, 14, 16, 5, 5, 0},   //
    {2, 3, 16, 16, 32, 3, 3, 1},   // small image networks
    {2, 16, 9, 11, 20, 3, 3, 1},   // odd sizes: the last row and column are not pooled
    {2, 5, 7, 8, 7, 4, 2, 1},      //
    {1, 2, 13, 40, 17, 7, 7, 3},   //
    {4, 3, 4, 5, 33, 3, 3, 0},     // one window
    {2, 40, 6, 6, 3, 1, 1, 0},     //
    {2, 4, 8, 21, 19, 2, 16, 5},   //
    {1, 1, 30, 30, 1, 6, 3, 2},    //
    {3, 1, 13, 39, 7, 3, 3, 0},    // one channel: vectors along the pixels, odd width
    {2, 1, 10, 70, 4, 2, 7, 3},    //
    {2, 10, 12, 12, 40, 5, 5, 2},  // several blocks of channels
    {2, 2, 5, 5, 4, 3, 3, 4},      // padding wider than the kernel
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

double derivative_of(Activation activation, double x) {
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

struct Tensors {
  Tensors(const ConvBlock2dShape& shape, bool whole, Numbers& numbers)
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
struct Expected {
  std::vector<double> output, grad_input, grad_weight, grad_bias;
  std::vector<int> taps;  // [N, channels, cells]
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

  void pool(int64_t n, int64_t o, int64_t i, int64_t j) {
    double z[4], sum = 0;
    int best = 0;
    for (int tap = 0; tap < 4; ++tap) {
      z[tap] = convolve(n, o, 2 * i + tap / 2, 2 * j + tap % 2);
      sum += value_of(shape_.activation, z[tap]);
      if (z[tap] > z[best]) best = tap;
    }
    const double grad = t_.grad[static_cast<int64_t>(result_.output.size())];
    const bool is_max = shape_.pool == BlockPool::kMax;
    result_.output.push_back(is_max ? value_of(shape_.activation, z[best]) : sum / 4);
    result_.taps.push_back(best);
    for (int tap = 0; tap < 4; ++tap) {
      if (is_max && tap != best) continue;
      const double slope = derivative_of(shape_.activation, z[tap]);
      add_gradient(n, o, 2 * i + tap / 2, 2 * j + tap % 2,
                   is_max ? grad * slope : grad * slope / 4);
    }
  }

  const ConvBlock2dShape& shape_;
  const Conv2dShape& s_;
  const Tensors& t_;
  Expected result_;
};

// Largest difference in units of the largest expected value, or of `least`: the sum of many terms
// of both signs may be small by chance.
double distance(const Floats& got, const std::vector<double>& want, double least = 1e-6) {
  double largest = least, worst = 0;
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
  const ConvBlock2dForward forward{shape,         t.input.data(),   strides, t.weight.data(),
                                   t.bias.data(), r->output.data(), offsets};
  const ConvBlock2dPlan plan = plan_conv_block2d_forward(forward);
  Floats scratch(plan.scratch_floats);
  conv_block2d_forward(plan, forward, scratch.data());
  const ConvBlock2dBackward backward{shape,
                                     t.grad.data(),
                                     r->output.data(),
                                     offsets,
                                     t.input.data(),
                                     strides,
                                     t.weight.data(),
                                     t.bias.data(),
                                     r->grad_input.data(),
                                     r->grad_weight.data(),
                                     r->grad_bias.data()};
  const ConvBlock2dPlan backward_plan = plan_conv_block2d_backward(backward);
  Floats backward_scratch(backward_plan.scratch_floats);
  conv_block2d_backward(backward_plan, backward, backward_scratch.data());
}

bool taps_match(const ConvBlock2dShape& shape, const Results& r, const Expected& e) {
  const int64_t channels = shape.conv.out_channels, cells = shape.cells();
  bool by_channel = true, by_cell = true;  // the order is the kernels' own affair
  for (size_t i = 0; i < r.offsets.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i), n = at / (channels * cells);
    const int64_t o = at / cells % channels, cell = at % cells;
    by_channel &= r.offsets[i] == e.taps[i];
    by_cell &= r.offsets[(n * cells + cell) * channels + o] == e.taps[i];
  }
  return by_channel || by_cell;
}

void test_case(const Case& c, Activation activation, BlockPool pool, bool whole, Isa isa) {
  const ConvBlock2dShape shape = shape_of(c, activation, pool);
  const std::string what = std::string(isa_name(isa)) + " case " + std::to_string(&c - kCases) +
                           " activation " + std::to_string(static_cast<int>(activation)) +
                           (pool == BlockPool::kMax ? " max" : " avg");
  CHECK_WITH(conv_block2d_applies(shape), what);
  Numbers numbers(static_cast<uint64_t>(&c - kCases) + 1);
  const Tensors tensors(shape, whole, numbers);
  const Expected expected = Oracle(shape, tensors).run();
  Results results(shape);
  run(shape, tensors, &results);
  CHECK_WITH(distance(results.output, expected.output) < 2e-6, what + " output");
  if (whole && pool == BlockPool::kMax && activation == Activation::kNone)
    CHECK_WITH(taps_match(shape, results, expected), what + " winning taps");
  CHECK_WITH(distance(results.grad_input, expected.grad_input) < 5e-6, what + " grad_input");
  CHECK_WITH(distance(results.grad_weight, expected.grad_weight) < 5e-6, what + " grad_weight");
  CHECK_WITH(distance(results.grad_bias, expected.grad_bias, 1.0) < 5e-6, what + " grad_bias");
}

void test_refusals() {
  const auto applies = [](auto change) {
    ConvBlock2dShape shape = shape_of(kCases[0], Activation::kLeakyRelu, BlockPool::kMax);
    change(shape);
    return conv_block2d_applies(shape);
  };
  CHECK(applies([](ConvBlock2dShape&) {}));
  CHECK(!applies([](ConvBlock2dShape& s) { s.conv.stride_width = 2; }));
  CHECK(!applies([](ConvBlock2dShape& s) { s.conv.dilation_height = 2; }));
  CHECK(!applies([](ConvBlock2dShape& s) { s.conv.groups = 2; }));
  CHECK(!applies([](ConvBlock2dShape& s) { s.conv.kernel_height = 8; }));
  CHECK(!applies([](ConvBlock2dShape& s) { s.conv.out_width = 1; }));
  CHECK(!applies([](ConvBlock2dShape& s) { s.conv.out_height = s.conv.out_width = 4096; }));
  CHECK(!applies([](ConvBlock2dShape& s) { s.negative_slope = -0.5f; }));
  CHECK(!applies([](ConvBlock2dShape& s) {
    s.conv.in_channels = 32;
    s.conv.kernel_height = s.conv.kernel_width = 3;
  }));
}

// The comparison must notice one wrong value and one wrong tap.
void test_negative_control() {
  const ConvBlock2dShape shape = shape_of(kCases[0], Activation::kNone, BlockPool::kMax);
  Numbers numbers(5);
  const Tensors tensors(shape, true, numbers);
  const Expected expected = Oracle(shape, tensors).run();
  Results results(shape);
  run(shape, tensors, &results);
  results.output[7] += 1e-2f;
  results.offsets[7] ^= 1;
  CHECK(!(distance(results.output, expected.output) < 2e-6));
  CHECK(!taps_match(shape, results, expected));
}

}  // namespace

int main() {
  fastconv::testing::for_each_isa([](Isa isa) {
    for (const Case& c : kCases)
      for (const BlockPool pool : {BlockPool::kMax, BlockPool::kAvg})
        for (int a = 0; a < kActivations; ++a)
          for (const bool whole : {false, true})
            if (a < 3 || !whole) test_case(c, static_cast<Activation>(a), pool, whole, isa);
    fastconv::testing::use_threads();
    test_case(kCases[1], Activation::kRelu, BlockPool::kMax, true, isa);
    test_case(kCases[2], Activation::kTanh, BlockPool::kAvg, false, isa);
    fastconv::testing::use_no_threads();
  });
  test_refusals();
  test_negative_control();
  return fastconv::testing::report();
}
