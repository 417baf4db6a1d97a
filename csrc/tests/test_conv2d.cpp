// SPDX-License-Identifier: MIT
// conv2d on raw pointers: forward and both gradients, every ISA, layout and thread count against
// the definition in double. Operands, results and scratch are allocated to the float, scratch starts
// as NaN: reading or writing outside shows under AddressSanitizer, reading unwritten memory always.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "common/shapes.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/conv2d_reference.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

using testing::Floats;
using testing::Numbers;

// --- Shapes ---------------------------------------------------------------------------------------

struct Window {
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

int64_t output_size(int64_t size, const Window& w) {
  return (size + 2 * w.padding - w.dilation * (w.kernel - 1) - 1) / w.stride + 1;
}

Conv2dShape make_shape(int64_t batch, int64_t in, int64_t height, int64_t width, int64_t out,
                       int64_t groups, Window rows, Window columns) {
  return {batch,          in,           height,         width,           out,
          output_size(height, rows),    output_size(width, columns),     rows.kernel,
          columns.kernel, rows.stride,  columns.stride, rows.padding,    columns.padding,
          rows.dilation,  columns.dilation,             groups};
}

std::vector<Conv2dShape> named_shapes() {
  const auto square = [](int64_t batch, int64_t in, int64_t size, int64_t out, Window w,
                         int64_t groups = 1) {
    return make_shape(batch, in, size, size, out, groups, w, w);
  };
  return {
      square(4, 1, 28, 6, {5, 1, 2, 1}),              // LeNet conv1
      square(4, 6, 14, 16, {5, 1, 0, 1}),             // LeNet conv2
      square(1, 3, 1, 4, {1, 1, 0, 1}),               // one pixel
      square(2, 3, 1, 4, {3, 1, 1, 1}),               // one pixel, padded
      square(2, 17, 9, 33, {3, 2, 1, 1}),             // odd channels, stride 2
      square(2, 5, 13, 7, {3, 4, 0, 1}),              // stride > kernel: unread input
      square(2, 3, 5, 4, {3, 7, 0, 1}),               // stride > image
      square(2, 3, 6, 5, {3, 1, 5, 1}),               // padding > kernel
      square(1, 2, 2, 3, {1, 1, 9, 1}),               // padding > image
      square(2, 4, 17, 6, {3, 3, 2, 2}),              // dilation with stride
      square(1, 3, 4, 5, {3, 1, 8, 8}),               // dilation > image
      square(1, 2, 16, 3, {11, 1, 5, 1}),             // 11 x 11
      square(2, 20, 15, 20, {3, 2, 1, 1}, 20),        // depthwise
      square(2, 7, 9, 21, {3, 1, 1, 1}, 7),           // depthwise multiplier 3
      square(2, 6, 7, 10, {3, 1, 1, 1}, 2),           // groups
      square(1, 600, 3, 5, {1, 1, 0, 1}),             // deep sums in several blocks
      square(1, 75, 5, 20, {3, 1, 0, 1}),             // likewise, with taps
      square(1, 4, 26, 3, {25, 1, 0, 1}),             // more taps than one block holds
      square(64, 3, 2, 4, {2, 1, 0, 1}),              // many one-pixel outputs
      square(2, 16, 30, 48, {3, 1, 1, 1}),            // enough work for several threads
      make_shape(2, 4, 13, 18, 5, 1, {2, 4, 0, 1}, {5, 2, 2, 1}),
      make_shape(1, 3, 19, 25, 4, 1, {3, 2, 4, 4}, {2, 4, 1, 6}),
      make_shape(1, 2, 3, 130, 3, 1, {3, 1, 1, 1}, {3, 1, 1, 1}),
      make_shape(2, 3, 1, 37, 5, 1, {1, 1, 0, 1}, {5, 1, 0, 1}),
      make_shape(2, 3, 37, 1, 5, 1, {5, 1, 0, 1}, {1, 1, 0, 1}),
      make_shape(2, 3, 0, 4, 5, 1, {3, 1, 1, 1}, {3, 1, 1, 1}),  // no input rows, only padding
  };
}

Conv2dShape random_shape(Numbers& numbers) {
  for (;;) {
    const auto window = [&](int64_t size) {
      return Window{numbers.between(1, std::min<int64_t>(size + 2, 5)), numbers.between(1, 4),
                    numbers.between(0, 5), numbers.between(1, 3)};
    };
    const int64_t groups = numbers.between(0, 2) == 0 ? numbers.between(2, 5) : 1;
    const int64_t height = numbers.between(1, 14);
    const int64_t width = numbers.between(1, 40);
    const Conv2dShape s = make_shape(numbers.between(1, 4), groups * numbers.between(1, 19), height,
                                     width, groups * numbers.between(1, 34), groups,
                                     window(height), window(width));
    const bool fits = s.in_height + 2 * s.padding_height >
                          s.dilation_height * (s.kernel_height - 1) &&
                      s.in_width + 2 * s.padding_width > s.dilation_width * (s.kernel_width - 1);
    if (fits && s.multiply_adds() < 400'000) return s;
  }
}

std::string describe(const Conv2dShape& s) {
  std::string text;
  for (int64_t value :
       {s.batch, s.in_channels, s.in_height, s.in_width, s.out_channels, s.kernel_height,
        s.kernel_width, s.stride_height, s.stride_width, s.padding_height, s.padding_width,
        s.dilation_height, s.dilation_width, s.groups})
    text += std::to_string(value) + " ";
  return "shape (n c h w o kh kw sh sw ph pw dh dw g) " + text;
}

// --- Operands -------------------------------------------------------------------------------------

enum class Layout { kContiguous, kChannelsLast, kRowsApart };
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kChannelsLast, Layout::kRowsApart};

// A 4-D tensor in some layout on exactly the memory it spans.
struct Tensor {
  Tensor(Layout layout, int64_t n, int64_t c, int64_t h, int64_t w)
      : batch(n), channels(c), height(h), width(w), data(span(layout)) {}

  float& at(int64_t n, int64_t c, int64_t i, int64_t j) {
    return data[n * strides.batch + c * strides.channel + i * strides.row + j * strides.column];
  }
  float at(int64_t n, int64_t c, int64_t i, int64_t j) const {
    return const_cast<Tensor*>(this)->at(n, c, i, j);
  }
  template <typename Make>
  void fill(const Make& make) {
    for_each([&](float& x) { x = make(); });
  }
  template <typename Visit>
  void for_each(const Visit& visit) {
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j) visit(at(n, c, i, j));
  }
  std::vector<double> dense() {
    std::vector<double> values;
    for_each([&](float& x) { values.push_back(x); });
    return values;
  }

  int64_t batch, channels, height, width;
  Strides4 strides{};
  Floats data;

 private:
  int64_t span(Layout layout) {
    if (layout == Layout::kContiguous) strides = contiguous_strides(channels, height, width);
    if (layout == Layout::kChannelsLast) strides = channels_last_strides(channels, height, width);
    if (layout == Layout::kRowsApart) {
      strides = contiguous_strides(channels, height + 1, width + 3);
      strides.batch += 2;
    }
    if (batch * channels * height * width == 0) return 0;
    return (batch - 1) * strides.batch + (channels - 1) * strides.channel +
           (height - 1) * strides.row + (width - 1) * strides.column + 1;
  }
};

// The definition: every product of a convolution, once. Calls
// visit(input index, weight index, output index) on dense tensors.
template <typename Visit>
void for_each_product(const Conv2dShape& s, const Visit& visit) {
  const int64_t group_in = s.group_in_channels();
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t o = 0; o < s.out_channels; ++o)
      for (int64_t c = 0; c < group_in; ++c)
        for (int64_t r = 0; r < s.kernel_height; ++r)
          for (int64_t q = 0; q < s.kernel_width; ++q)
            for (int64_t i = 0; i < s.out_height; ++i)
              for (int64_t j = 0; j < s.out_width; ++j) {
                const int64_t y = i * s.stride_height - s.padding_height + r * s.dilation_height;
                const int64_t x = j * s.stride_width - s.padding_width + q * s.dilation_width;
                if (y < 0 || y >= s.in_height || x < 0 || x >= s.in_width) continue;
                const int64_t channel = o / s.group_out_channels() * group_in + c;
                visit(((n * s.in_channels + channel) * s.in_height + y) * s.in_width + x,
                      ((o * group_in + c) * s.kernel_height + r) * s.kernel_width + q,
                      ((n * s.out_channels + o) * s.out_height + i) * s.out_width + j);
              }
}

struct Expected {
  std::vector<double> output, grad_input, grad_weight, grad_bias;
};

Expected by_definition(const Conv2dShape& s, const std::vector<double>& input,
                       const std::vector<double>& weight, const std::vector<double>& bias,
                       const std::vector<double>& grad_output) {
  Expected e{std::vector<double>(grad_output.size()), std::vector<double>(input.size()),
             std::vector<double>(weight.size()), std::vector<double>(bias.size())};
  for (size_t i = 0; i < grad_output.size(); ++i) {
    const size_t o = i / static_cast<size_t>(s.out_pixels()) % bias.size();
    e.output[i] = bias[o];
    e.grad_bias[o] += grad_output[i];
  }
  for_each_product(s, [&](int64_t in, int64_t w, int64_t out) {
    e.output[out] += input[in] * weight[w];
    e.grad_input[in] += grad_output[out] * weight[w];
    e.grad_weight[w] += grad_output[out] * input[in];
  });
  return e;
}

// --- Checks ---------------------------------------------------------------------------------------

bool equal(const std::vector<double>& result, const std::vector<double>& expected) {
  return result == expected;  // false where a NaN is left
}

std::vector<double> dense(const Floats& values) {
  return {values.data(), values.data() + values.size()};
}

struct Operands {
  Operands(const Conv2dShape& s, Layout in, Layout out, Numbers& numbers)
      : input(in, s.batch, s.in_channels, s.in_height, s.in_width),
        weight(s.out_channels * s.group_in_channels() * s.taps()),
        bias(s.out_channels),
        grad_output(out, s.batch, s.out_channels, s.out_height, s.out_width) {
    const auto whole = [&] { return numbers.whole(); };
    input.fill(whole);
    grad_output.fill(whole);
    for (int64_t i = 0; i < weight.size(); ++i) weight[i] = numbers.whole();
    for (int64_t i = 0; i < bias.size(); ++i) bias[i] = numbers.whole();
  }
  Tensor input;
  Floats weight;
  Floats bias;
  Tensor grad_output;
};

void check_shape(const Conv2dShape& s, Layout in, Layout out, Numbers& numbers) {
  Operands x(s, in, out, numbers);
  const Expected expected = by_definition(s, x.input.dense(), dense(x.weight), dense(x.bias),
                                          x.grad_output.dense());
  const std::string where = std::string(isa_name(active_isa())) + " " + describe(s);

  for (bool with_bias : {true, false}) {
    const Conv2dPlan plan = plan_conv2d_forward(s);
    CHECK(plan.isa == active_isa());
    Floats scratch(plan.scratch_floats);
    Tensor output(out, s.batch, s.out_channels, s.out_height, s.out_width);
    conv2d_forward(plan,
                   {s, x.input.data.data(), x.input.strides, x.weight.data(),
                    with_bias ? x.bias.data() : nullptr, output.data.data(), output.strides},
                   scratch.data());
    std::vector<double> result = output.dense();
    if (!with_bias)
      for (size_t i = 0; i < result.size(); ++i)
        result[i] += x.bias[static_cast<int64_t>(i) / s.out_pixels() % s.out_channels];
    CHECK_WITH(equal(result, expected.output), "forward " + where);
    CHECK(last_record(KernelId::kConv2dForward).isa == active_isa());
  }
  if (s.in_pixels() > 0) {
    const Conv2dPlan plan = plan_conv2d_grad_input(s);
    Floats scratch(plan.scratch_floats);
    Tensor grad_input(in, s.batch, s.in_channels, s.in_height, s.in_width);
    conv2d_grad_input(plan,
                      {s, x.grad_output.data.data(), x.grad_output.strides, x.weight.data(),
                       grad_input.data.data(), grad_input.strides},
                      scratch.data());
    CHECK_WITH(equal(grad_input.dense(), expected.grad_input), "grad_input " + where);
  }
  for (bool with_bias : {true, false}) {
    const Conv2dPlan plan = plan_conv2d_grad_weight(s);
    Floats scratch(plan.scratch_floats);
    Floats grad_weight(x.weight.size());
    Floats grad_bias(s.out_channels);
    conv2d_grad_weight(plan,
                       {s, x.grad_output.data.data(), x.grad_output.strides, x.input.data.data(),
                        x.input.strides, grad_weight.data(),
                        with_bias ? grad_bias.data() : nullptr},
                       scratch.data());
    CHECK_WITH(equal(dense(grad_weight), expected.grad_weight), "grad_weight " + where);
    if (with_bias) CHECK_WITH(equal(dense(grad_bias), expected.grad_bias), "grad_bias " + where);
  }
}

// conv2d_reference<double> and <float>: what float64 users and other tests rely on.
void check_reference(const Conv2dShape& s, Layout in, Layout out, Numbers& numbers) {
  Operands x(s, in, out, numbers);
  const Expected expected = by_definition(s, x.input.dense(), dense(x.weight), dense(x.bias),
                                          x.grad_output.dense());
  Tensor output(out, s.batch, s.out_channels, s.out_height, s.out_width);
  Tensor grad_input(in, s.batch, s.in_channels, s.in_height, s.in_width);
  Floats grad_weight(x.weight.size());
  Floats grad_bias(s.out_channels);
  conv2d_forward_reference<float>(s, x.input.data.data(), x.input.strides, x.weight.data(),
                                  x.bias.data(), output.data.data(), output.strides);
  conv2d_grad_input_reference<float>(s, x.grad_output.data.data(), x.grad_output.strides,
                                     x.weight.data(), grad_input.data.data(), grad_input.strides);
  conv2d_grad_weight_reference<float>(s, x.grad_output.data.data(), x.grad_output.strides,
                                      x.input.data.data(), x.input.strides, grad_weight.data(),
                                      grad_bias.data());
  CHECK_WITH(equal(output.dense(), expected.output), "reference forward " + describe(s));
  CHECK_WITH(equal(grad_input.dense(), expected.grad_input), "reference grad_input " + describe(s));
  CHECK_WITH(equal(dense(grad_weight), expected.grad_weight),
             "reference grad_weight " + describe(s));
  CHECK_WITH(equal(dense(grad_bias), expected.grad_bias), "reference grad_bias " + describe(s));

  const std::vector<double> input = x.input.dense(), weight = dense(x.weight);
  std::vector<double> result(expected.output.size());
  conv2d_forward_reference<double>(
      s, input.data(), contiguous_strides(s.in_channels, s.in_height, s.in_width), weight.data(),
      dense(x.bias).data(), result.data(),
      contiguous_strides(s.out_channels, s.out_height, s.out_width));
  CHECK_WITH(equal(result, expected.output), "double reference forward " + describe(s));
}

// Real numbers, and the bound that holds for any order of summation: n roundings of at most half an
// ulp of the sum of absolute values.
void check_rounding(const Conv2dShape& s, Numbers& numbers) {
  Operands x(s, Layout::kContiguous, Layout::kContiguous, numbers);
  x.input.fill([&] { return numbers.real(); });
  for (int64_t i = 0; i < x.weight.size(); ++i) x.weight[i] = numbers.real();
  std::vector<double> input = x.input.dense(), weight = dense(x.weight), bias = dense(x.bias);
  const Expected exact = by_definition(s, input, weight, bias, x.grad_output.dense());
  for (auto* values : {&input, &weight, &bias})
    for (double& value : *values) value = std::fabs(value);
  const Expected magnitude = by_definition(s, input, weight, bias, x.grad_output.dense());

  const Conv2dPlan plan = plan_conv2d_forward(s);
  Floats scratch(plan.scratch_floats);
  Tensor output(Layout::kContiguous, s.batch, s.out_channels, s.out_height, s.out_width);
  conv2d_forward(plan,
                 {s, x.input.data.data(), x.input.strides, x.weight.data(), x.bias.data(),
                  output.data.data(), output.strides},
                 scratch.data());
  const double unit = std::ldexp(1.0, -24);
  const double roundings = static_cast<double>(2 * s.group_in_channels() * s.taps() + 2);
  const std::vector<double> result = output.dense();
  bool inside = true;
  for (size_t i = 0; i < result.size(); ++i)
    inside = inside && std::fabs(result[i] - exact.output[i]) <=
                           roundings * unit * magnitude.output[i];
  CHECK_WITH(inside, "rounding " + describe(s));
}

// The comparison can fail: one tap off by one must show.
void check_negative_control(Numbers& numbers) {
  const Conv2dShape s = named_shapes()[1];
  Operands x(s, Layout::kContiguous, Layout::kContiguous, numbers);
  const Expected expected = by_definition(s, x.input.dense(), dense(x.weight), dense(x.bias),
                                          x.grad_output.dense());
  x.weight[7] += 1.0f;
  const Conv2dPlan plan = plan_conv2d_forward(s);
  Floats scratch(plan.scratch_floats);
  Tensor output(Layout::kContiguous, s.batch, s.out_channels, s.out_height, s.out_width);
  conv2d_forward(plan,
                 {s, x.input.data.data(), x.input.strides, x.weight.data(), x.bias.data(),
                  output.data.data(), output.strides},
                 scratch.data());
  CHECK(!equal(output.dense(), expected.output));
}

void check_all(uint64_t seed) {
  Numbers numbers(seed);
  for (const Conv2dShape& shape : named_shapes())
    for (Layout in : kLayouts)
      for (Layout out : kLayouts) check_shape(shape, in, out, numbers);
  for (int round = 0; round < 200; ++round) {
    const Conv2dShape shape = random_shape(numbers);
    const auto layout = [&] { return kLayouts[numbers.between(0, 2)]; };
    const Layout in = layout();
    check_shape(shape, in, layout(), numbers);
  }
  check_rounding(named_shapes()[1], numbers);
  check_rounding(named_shapes()[16], numbers);
  check_negative_control(numbers);
}

void check_references(uint64_t seed) {
  Numbers numbers(seed);
  for (const Conv2dShape& shape : named_shapes()) {
    check_reference(shape, Layout::kContiguous, Layout::kRowsApart, numbers);
    check_reference(shape, Layout::kChannelsLast, Layout::kChannelsLast, numbers);
  }
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  using namespace fastconv;
  testing::use_no_threads();
  testing::for_each_isa([](cpu::Isa) { cpu::check_all(3); });
  cpu::check_references(4);
  testing::use_threads();
  testing::for_each_isa([](cpu::Isa) { cpu::check_all(5); });
  cpu::check_references(6);
  return testing::report();
}
