// SPDX-License-Identifier: MIT
// conv2d on raw pointers: forward and both gradients, every ISA, layout and thread count against
// the definition in double. Operands, results and scratch are allocated to the float, scratch
// starts as NaN: reading or writing outside shows under AddressSanitizer, reading unwritten memory
// always.
#include <algorithm>
#include <cmath>
#include <iterator>
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

// --- Shapes --------------------------------------------------------------------------------------

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
  return {batch,
          in,
          height,
          width,
          out,
          output_size(height, rows),
          output_size(width, columns),
          rows.kernel,
          columns.kernel,
          rows.stride,
          columns.stride,
          rows.padding,
          columns.padding,
          rows.dilation,
          columns.dilation,
          groups};
}

std::vector<Conv2dShape> named_shapes() {
  const auto square = [](int64_t batch, int64_t in, int64_t size, int64_t out, Window w,
                         int64_t groups = 1) {
    return make_shape(batch, in, size, size, out, groups, w, w);
  };
  return {
      square(4, 1, 28, 6, {5, 1, 2, 1}),        // LeNet conv1
      square(4, 6, 14, 16, {5, 1, 0, 1}),       // LeNet conv2
      square(1, 3, 1, 4, {1, 1, 0, 1}),         // one pixel
      square(2, 3, 1, 4, {3, 1, 1, 1}),         // one pixel, padded
      square(2, 17, 9, 33, {3, 2, 1, 1}),       // odd channels, stride 2
      square(2, 5, 13, 7, {3, 4, 0, 1}),        // stride > kernel: unread input
      square(2, 3, 5, 4, {3, 7, 0, 1}),         // stride > image
      square(2, 3, 6, 5, {3, 1, 5, 1}),         // padding > kernel
      square(1, 2, 2, 3, {1, 1, 9, 1}),         // padding > image
      square(2, 4, 17, 6, {3, 3, 2, 2}),        // dilation with stride
      square(1, 3, 4, 5, {3, 1, 8, 8}),         // dilation > image
      square(1, 2, 16, 3, {11, 1, 5, 1}),       // 11 x 11
      square(2, 20, 15, 20, {3, 2, 1, 1}, 20),  // depthwise
      square(2, 7, 9, 21, {3, 1, 1, 1}, 7),     // depthwise multiplier 3
      square(2, 6, 7, 10, {3, 1, 1, 1}, 2),     // groups
      square(1, 600, 3, 5, {1, 1, 0, 1}),       // deep sums in several blocks
      square(5, 70, 7, 37, {1, 1, 0, 1}),       // flat images, vectors that lie in two of them
      square(3, 35, 12, 64, {1, 1, 0, 1}),      // flat images, in place in the weight gradient
      square(2, 600, 12, 33, {1, 1, 0, 1}),     // likewise, in several blocks
      square(3, 40, 17, 64, {1, 1, 0, 1}, 2),   // likewise, in groups and several chunks
      square(1, 75, 5, 20, {3, 1, 0, 1}),       // deep sums with taps
      square(1, 4, 26, 3, {25, 1, 0, 1}),       // more taps than one block holds
      square(64, 3, 2, 4, {2, 1, 0, 1}),        // many one-pixel outputs
      square(9, 6, 9, 3, {3, 1, 0, 1}),         // several small images at once
      square(1, 5, 90, 2, {7, 1, 3, 1}),        // one image in several strips
      square(2, 16, 30, 48, {3, 1, 1, 1}),      // enough work for several threads
      square(37, 3, 6, 5, {3, 1, 1, 1}),        // more images than lanes, and some are left
      square(8, 2, 12, 7, {5, 1, 2, 1}),        // images in pieces, to fill the lanes
      square(17, 2, 20, 9, {3, 2, 1, 1}),       // several strips of several images
      make_shape(2, 4, 13, 18, 5, 1, {2, 4, 0, 1}, {5, 2, 2, 1}),
      make_shape(1, 3, 19, 25, 4, 1, {3, 2, 4, 4}, {2, 4, 1, 6}),
      make_shape(1, 2, 3, 130, 3, 1, {3, 1, 1, 1}, {3, 1, 1, 1}),
      make_shape(2, 3, 1, 37, 5, 1, {1, 1, 0, 1}, {5, 1, 0, 1}),
      make_shape(2, 3, 37, 1, 5, 1, {5, 1, 0, 1}, {1, 1, 0, 1}),
      make_shape(2, 3, 0, 4, 5, 1, {3, 1, 2, 1}, {3, 1, 1, 1}),  // no input rows, only padding
  };
}

// `large` shapes are worth splitting over threads.
Conv2dShape random_shape(bool large, Numbers& numbers) {
  for (;;) {
    const auto window = [&](int64_t size) {
      return Window{numbers.between(1, std::min<int64_t>(size + 2, 5)), numbers.between(1, 4),
                    numbers.between(0, 5), numbers.between(1, 3)};
    };
    const int64_t groups = numbers.between(0, 2) == 0 ? numbers.between(2, 5) : 1;
    const int64_t height = numbers.between(1, 14);
    const int64_t width = numbers.between(1, 40);
    const Conv2dShape s =
        make_shape(numbers.between(1, 4), groups * numbers.between(1, 19), height, width,
                   groups * numbers.between(1, 34), groups, window(height), window(width));
    const bool fits =
        s.in_height + 2 * s.padding_height > s.dilation_height * (s.kernel_height - 1) &&
        s.in_width + 2 * s.padding_width > s.dilation_width * (s.kernel_width - 1);
    const int64_t work = s.multiply_adds();
    if (fits && (large ? work > 800'000 && work < 2'500'000 : work < 400'000)) return s;
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

// --- Operands ------------------------------------------------------------------------------------

enum class Layout { kContiguous, kChannelsLast, kRowsApart };
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kChannelsLast, Layout::kRowsApart};

// A 4-D tensor in some layout on exactly the memory it spans.
struct Tensor {
  Tensor(Layout layout, int64_t n, int64_t c, int64_t h, int64_t w)
      : batch(n), channels(c), height(h), width(w), data(span(layout)) {}

  float& at(int64_t n, int64_t c, int64_t i, int64_t j) {
    return data[n * strides.batch + c * strides.channel + i * strides.row + j * strides.column];
  }
  void load(const std::vector<double>& values) {
    const double* next = values.data();
    for_each([&](float& x) { x = static_cast<float>(*next++); });
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
  // Plain pointers, because the sanitizers make vectors slow.
  const double *x = input.data(), *y = weight.data(), *z = grad_output.data();
  double *output = e.output.data(), *grad_input = e.grad_input.data(),
         *grad_weight = e.grad_weight.data();
  for_each_product(s, [=](int64_t in, int64_t w, int64_t out) {
    output[out] += x[in] * y[w];
    grad_input[in] += z[out] * y[w];
    grad_weight[w] += z[out] * x[in];
  });
  return e;
}

// --- Checks --------------------------------------------------------------------------------------

bool equal(const std::vector<double>& result, const std::vector<double>& expected) {
  return result == expected;  // false where a NaN is left
}

std::vector<double> dense(const Floats& values) {
  return {values.data(), values.data() + values.size()};
}

// The numbers of one case and what must come out, independent of layout.
struct Problem {
  Problem(const Conv2dShape& shape, Numbers& numbers, bool whole = true) : s(shape) {
    const auto make = [&](int64_t size) {
      std::vector<double> values(static_cast<size_t>(size));
      for (double& value : values) value = whole ? numbers.whole() : numbers.real();
      return values;
    };
    input = make(s.batch * s.in_channels * s.in_pixels());
    weight = make(s.out_channels * s.group_in_channels() * s.taps());
    bias = make(s.out_channels);
    grad_output = make(s.batch * s.out_channels * s.out_pixels());
    expected = by_definition(s, input, weight, bias, grad_output);
  }
  Conv2dShape s;
  std::vector<double> input, weight, bias, grad_output;
  Expected expected;
};

Floats as_floats(const std::vector<double>& values) {
  Floats result(static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i)
    result[static_cast<int64_t>(i)] = static_cast<float>(values[i]);
  return result;
}

Tensor input_tensor(const Problem& p, Layout layout) {
  Tensor t(layout, p.s.batch, p.s.in_channels, p.s.in_height, p.s.in_width);
  t.load(p.input);
  return t;
}

Tensor output_tensor(const Conv2dShape& s, Layout layout) {
  return Tensor(layout, s.batch, s.out_channels, s.out_height, s.out_width);
}

constexpr const char* kAlgorithms[] = {
    "panel",    "pixel_vectors", "channel_vectors", "image_vectors", "rows",     "shifted",
    "winograd", "winograd_4x4",  "direct",          "dot",           "depthwise"};
constexpr KernelId kKernels[] = {KernelId::kConv2dForward, KernelId::kConv2dGradInput,
                                 KernelId::kConv2dGradWeight};

// Forces one algorithm on all kernels of conv2d while it lives; nullptr leaves them their choice.
class Forced {
 public:
  explicit Forced(const char* algorithm) {
    for (KernelId kernel : kKernels) force_algorithm(kernel, algorithm);
  }
  ~Forced() {
    for (KernelId kernel : kKernels) force_algorithm(kernel, nullptr);
  }
  Forced(const Forced&) = delete;
  Forced& operator=(const Forced&) = delete;
};

// Runs for which the forced algorithm was the one that served, to prove that there were some.
int64_t forced_runs = 0;

void check_record(KernelId kernel) {
  const KernelRecord record = last_record(kernel);
  CHECK(record.isa == active_isa());
  CHECK(!is_other(forced_algorithm(kernel), record.algorithm));
  if (forced_algorithm(kernel) != nullptr) ++forced_runs;
}

// Empty when the forced algorithm cannot serve the problem.
std::vector<double> run_forward(const Problem& p, Layout in, Layout out, bool with_bias) {
  const Tensor input = input_tensor(p, in);
  const Floats weight = as_floats(p.weight), bias = as_floats(p.bias);
  Tensor output = output_tensor(p.s, out);
  const Conv2dForward call{p.s,
                           input.data.data(),
                           input.strides,
                           weight.data(),
                           with_bias ? bias.data() : nullptr,
                           output.data.data(),
                           output.strides};
  const Conv2dPlan plan = plan_conv2d_forward(call);
  CHECK(plan.isa == active_isa());
  if (!plan.possible) return {};
  Floats scratch(plan.scratch_floats);
  conv2d_forward(plan, call, scratch.data());
  return output.dense();
}

void check_problem(const Problem& p, Layout in, Layout out) {
  const Conv2dShape& s = p.s;
  const char* forced = forced_algorithm(KernelId::kConv2dForward);
  const std::string where = std::string(isa_name(active_isa())) + " " +
                            (forced == nullptr ? "" : std::string(forced) + " ") + describe(s);
  for (bool with_bias : {true, false}) {
    std::vector<double> result = run_forward(p, in, out, with_bias);
    if (result.empty() && !p.expected.output.empty()) break;
    if (!with_bias)
      for (size_t i = 0; i < result.size(); ++i)
        result[i] += p.bias[i / static_cast<size_t>(s.out_pixels()) % p.bias.size()];
    CHECK_WITH(equal(result, p.expected.output), "forward " + where);
    check_record(KernelId::kConv2dForward);
  }
  const Tensor input = input_tensor(p, in);
  Tensor grad_output = output_tensor(s, out);
  grad_output.load(p.grad_output);
  if (s.in_pixels() > 0) {
    const Floats weight = as_floats(p.weight);
    Tensor grad_input(in, s.batch, s.in_channels, s.in_height, s.in_width);
    const Conv2dGradInput call{s,
                               grad_output.data.data(),
                               grad_output.strides,
                               weight.data(),
                               grad_input.data.data(),
                               grad_input.strides};
    const Conv2dPlan plan = plan_conv2d_grad_input(call);
    if (plan.possible) {
      Floats scratch(plan.scratch_floats);
      conv2d_grad_input(plan, call, scratch.data());
      CHECK_WITH(equal(grad_input.dense(), p.expected.grad_input), "grad_input " + where);
      // Where no tap reaches an input there is nothing but zeros to write, and no kernel runs.
      const auto& expected = p.expected.grad_input;
      if (std::any_of(expected.begin(), expected.end(), [](double x) { return x != 0.0; }))
        check_record(KernelId::kConv2dGradInput);
    }
  }
  for (bool with_bias : {true, false}) {
    Floats grad_weight(static_cast<int64_t>(p.weight.size()));
    Floats grad_bias(s.out_channels);
    const Conv2dGradWeight call{s,
                                grad_output.data.data(),
                                grad_output.strides,
                                input.data.data(),
                                input.strides,
                                grad_weight.data(),
                                with_bias ? grad_bias.data() : nullptr};
    const Conv2dPlan plan = plan_conv2d_grad_weight(call);
    if (!plan.possible) break;
    Floats scratch(plan.scratch_floats);
    conv2d_grad_weight(plan, call, scratch.data());
    CHECK_WITH(equal(dense(grad_weight), p.expected.grad_weight), "grad_weight " + where);
    if (with_bias) CHECK_WITH(equal(dense(grad_bias), p.expected.grad_bias), "grad_bias " + where);
    check_record(KernelId::kConv2dGradWeight);
  }
}

// conv2d_reference<float> and <double>: what float64 users and other tests rely on.
template <typename T>
void check_reference(const Problem& p, Layout in, Layout out) {
  const Conv2dShape& s = p.s;
  const auto as_type = [](const std::vector<double>& values) {
    return std::vector<T>(values.begin(), values.end());
  };
  const auto back = [](const std::vector<T>& values) {
    return std::vector<double>(values.begin(), values.end());
  };
  const Strides4 in_strides = in == Layout::kChannelsLast
                                  ? channels_last_strides(s.in_channels, s.in_height, s.in_width)
                                  : contiguous_strides(s.in_channels, s.in_height, s.in_width);
  const Strides4 out_strides =
      out == Layout::kChannelsLast
          ? channels_last_strides(s.out_channels, s.out_height, s.out_width)
          : contiguous_strides(s.out_channels, s.out_height, s.out_width);
  const auto lay_out = [](const std::vector<T>& values, const Strides4& to, const Strides4& from,
                          int64_t n, int64_t c, int64_t h, int64_t w) {
    std::vector<T> result(values.size());
    for (int64_t a = 0; a < n; ++a)
      for (int64_t b = 0; b < c; ++b)
        for (int64_t i = 0; i < h; ++i)
          for (int64_t j = 0; j < w; ++j)
            result[a * to.batch + b * to.channel + i * to.row + j * to.column] =
                values[a * from.batch + b * from.channel + i * from.row + j * from.column];
    return result;
  };
  const Strides4 dense_in = contiguous_strides(s.in_channels, s.in_height, s.in_width);
  const Strides4 dense_out = contiguous_strides(s.out_channels, s.out_height, s.out_width);
  const std::vector<T> weight = as_type(p.weight), bias = as_type(p.bias);
  const std::vector<T> input = lay_out(as_type(p.input), in_strides, dense_in, s.batch,
                                       s.in_channels, s.in_height, s.in_width);
  const std::vector<T> grad_output = lay_out(as_type(p.grad_output), out_strides, dense_out,
                                             s.batch, s.out_channels, s.out_height, s.out_width);
  std::vector<T> output(grad_output.size()), grad_input(input.size());
  std::vector<T> grad_weight(weight.size()), grad_bias(bias.size());
  conv2d_forward_reference<T>(s, input.data(), in_strides, weight.data(), bias.data(),
                              output.data(), out_strides);
  conv2d_grad_input_reference<T>(s, grad_output.data(), out_strides, weight.data(),
                                 grad_input.data(), in_strides);
  conv2d_grad_weight_reference<T>(s, grad_output.data(), out_strides, input.data(), in_strides,
                                  grad_weight.data(), grad_bias.data());
  output =
      lay_out(output, dense_out, out_strides, s.batch, s.out_channels, s.out_height, s.out_width);
  grad_input =
      lay_out(grad_input, dense_in, in_strides, s.batch, s.in_channels, s.in_height, s.in_width);
  CHECK_WITH(equal(back(output), p.expected.output), "reference forward " + describe(s));
  CHECK_WITH(equal(back(grad_input), p.expected.grad_input), "reference grad_input " + describe(s));
  CHECK_WITH(equal(back(grad_weight), p.expected.grad_weight),
             "reference grad_weight " + describe(s));
  CHECK_WITH(equal(back(grad_bias), p.expected.grad_bias), "reference grad_bias " + describe(s));
}

// Real numbers, and the bound that holds for any order of summation: one rounding of half an ulp
// per product and per addition, relative to the sum of absolute values.
void check_rounding(const Conv2dShape& s, Numbers& numbers) {
  Problem p(s, numbers, /*whole=*/false);
  Problem magnitude = p;
  for (auto* values : {&magnitude.input, &magnitude.weight, &magnitude.bias})
    for (double& value : *values) value = std::fabs(value);
  magnitude.expected =
      by_definition(s, magnitude.input, magnitude.weight, magnitude.bias, magnitude.grad_output);
  const double unit = std::ldexp(1.0, -24);
  const auto roundings = static_cast<double>(2 * s.group_in_channels() * s.taps() + 2);
  const std::vector<double> result = run_forward(p, Layout::kContiguous, Layout::kContiguous, true);
  bool inside = true;
  for (size_t i = 0; i < result.size(); ++i)
    inside = inside && std::fabs(result[i] - p.expected.output[i]) <=
                           roundings * unit * magnitude.expected.output[i];
  CHECK_WITH(inside, "rounding " + describe(s));
}

// The comparison can fail: one tap off by one must show.
void check_negative_control(Numbers& numbers) {
  Problem p(named_shapes()[1], numbers);
  p.weight[7] += 1.0;
  CHECK(!equal(run_forward(p, Layout::kContiguous, Layout::kContiguous, true), p.expected.output));
}

std::vector<Problem> make_problems(bool large, Numbers& numbers) {
  constexpr int kSmall = 150;  // random cases that stay on one thread
  constexpr int kLarge = 40;   // random cases that are split over threads
  std::vector<Problem> problems;
  for (const Conv2dShape& shape : named_shapes()) problems.emplace_back(shape, numbers);
  for (int round = 0; round < (large ? kLarge : kSmall); ++round)
    problems.emplace_back(random_shape(large, numbers), numbers);
  return problems;
}

void check_all(bool threads, uint64_t seed) {
  threads ? testing::use_threads() : testing::use_no_threads();
  Numbers numbers(seed);
  const std::vector<Problem> problems = make_problems(threads, numbers);
  const size_t named = named_shapes().size();
  testing::for_each_isa([&](Isa) {
    for (size_t i = 0; i < problems.size(); ++i) {
      if (i < named && !threads) {
        for (Layout in : kLayouts)
          for (Layout out : kLayouts) check_problem(problems[i], in, out);
      } else {
        const Layout in = kLayouts[numbers.between(0, 2)];
        check_problem(problems[i], in, kLayouts[numbers.between(0, 2)]);
      }
      for (const char* algorithm : kAlgorithms) {
        // Every algorithm on the named shapes, one of them on each random one.
        if (i >= named && algorithm != kAlgorithms[i % std::size(kAlgorithms)]) continue;
        const Forced forced(algorithm);
        const Layout in = kLayouts[numbers.between(0, 2)];
        check_problem(problems[i], in, kLayouts[numbers.between(0, 2)]);
      }
    }
    CHECK(forced_runs > static_cast<int64_t>(problems.size()));
    forced_runs = 0;
    check_rounding(named_shapes()[1], numbers);
    check_rounding(named_shapes()[16], numbers);
    check_negative_control(numbers);
  });
  for (size_t i = 0; i < named; ++i) {
    check_reference<float>(problems[i], Layout::kContiguous, Layout::kChannelsLast);
    check_reference<double>(problems[i], Layout::kChannelsLast, Layout::kContiguous);
  }
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  fastconv::cpu::check_all(/*threads=*/false, 3);
  fastconv::cpu::check_all(/*threads=*/true, 5);
  return fastconv::testing::report();
}
