// SPDX-License-Identifier: MIT
// The depthwise kernels against the formulas in depthwise_ukernels.h, on memory that ends with the
// last row.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/conv2d/depthwise_ukernels.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

using testing::Floats;
using testing::Numbers;

constexpr float kGuard = 12345.0f;

struct Window {
  int64_t kernel;
  int64_t step;
  int64_t padding;
  int64_t dilation;
};

Window random_window(int64_t size, int64_t most_steps, Numbers& numbers) {
  for (;;) {
    const Window w{numbers.between(1, 7), numbers.between(1, most_steps), numbers.between(0, 4),
                   numbers.between(1, 2)};
    if (size + 2 * w.padding > w.dilation * (w.kernel - 1)) return w;
  }
}

int64_t output_size(int64_t size, const Window& w) {
  return (size + 2 * w.padding - w.dilation * (w.kernel - 1) - 1) / w.step + 1;
}

// A case with random sizes; `channels` is 1 for planes.
struct DepthwiseCase {
  DepthwiseCase(int64_t channel_count, int64_t most_steps, Numbers& numbers)
      : channels(channel_count),
        height(numbers.between(1, 9)),
        width(numbers.between(1, 40)),
        rows(random_window(height, 3, numbers)),
        columns(random_window(width, most_steps, numbers)),
        out_height(output_size(height, rows)),
        out_width(output_size(width, columns)),
        in_column(channels + (channels > 1 ? numbers.between(0, 2) : 0)),
        in_row(width * in_column + numbers.between(0, 3)),
        out_column(channels + (channels > 1 ? numbers.between(0, 2) : 0)),
        out_row(out_width * out_column + numbers.between(0, 3)),
        input((height - 1) * in_row + (width - 1) * in_column + channels),
        output((out_height - 1) * out_row + (out_width - 1) * out_column + channels, kGuard),
        weights(rows.kernel * columns.kernel * channels),
        bias(channels) {
    for (Floats* values : {&input, &weights, &bias})
      for (int64_t i = 0; i < values->size(); ++i) (*values)[i] = numbers.whole();
    taps.row_count = rows.kernel;
    taps.column_count = columns.kernel;
    taps.row_step = rows.step;
    taps.column_step = columns.step;
    for (int64_t r = 0; r < rows.kernel; ++r) taps.rows[r] = r * rows.dilation - rows.padding;
    for (int64_t q = 0; q < columns.kernel; ++q)
      taps.columns[q] = q * columns.dilation - columns.padding;
  }

  float input_at(int64_t i, int64_t j, int64_t c) const {
    const bool inside = i >= 0 && i < height && j >= 0 && j < width;
    return inside ? input[i * in_row + j * in_column + c] : 0.0f;
  }

  // Calls visit(output index, tap, channel, input value) for every product.
  template <typename Visit>
  void for_each_product(const Visit& visit) const {
    for (int64_t i = 0; i < out_height; ++i)
      for (int64_t j = 0; j < out_width; ++j)
        for (int64_t r = 0; r < rows.kernel; ++r)
          for (int64_t q = 0; q < columns.kernel; ++q)
            for (int64_t c = 0; c < channels; ++c)
              visit(i * out_row + j * out_column + c, r * columns.kernel + q, c,
                    input_at(i * rows.step + taps.rows[r], j * columns.step + taps.columns[q], c));
  }

  template <typename Visit>
  void for_each_output(const Visit& visit) const {
    for (int64_t i = 0; i < out_height; ++i)
      for (int64_t j = 0; j < out_width; ++j)
        for (int64_t c = 0; c < channels; ++c) visit(i * out_row + j * out_column + c, c);
  }

  std::string describe(const char* kernel) const {
    return std::string(kernel) + " " + std::to_string(channels) + " channels, " +
           std::to_string(height) + " x " + std::to_string(width) + ", kernel " +
           std::to_string(rows.kernel) + " x " + std::to_string(columns.kernel) + ", step " +
           std::to_string(rows.step) + " x " + std::to_string(columns.step) + ", padding " +
           std::to_string(rows.padding) + " x " + std::to_string(columns.padding);
  }

  int64_t channels, height, width;
  Window rows, columns;
  int64_t out_height, out_width, in_column, in_row, out_column, out_row;
  Floats input, output, weights, bias;
  DepthwiseTaps taps{};
};

bool equal(const Floats& a, const Floats& b) {
  for (int64_t i = 0; i < a.size(); ++i)
    if (!(a[i] == b[i])) return false;
  return true;
}

// What the forward pass must write, guards between rows included.
Floats expected_output(const DepthwiseCase& d, const float* bias) {
  Floats expected(d.output.size(), kGuard);
  d.for_each_output([&](int64_t at, int64_t c) { expected[at] = bias ? bias[c] : 0.0f; });
  d.for_each_product([&](int64_t at, int64_t tap, int64_t c, float x) {
    expected[at] += d.weights[tap * d.channels + c] * x;
  });
  return expected;
}

// What the weight gradient must add to sums [taps + 1, channels].
Floats expected_sums(const DepthwiseCase& d) {
  const int64_t taps = d.rows.kernel * d.columns.kernel;
  Floats expected((taps + 1) * d.channels, 0.0f);
  d.for_each_product([&](int64_t at, int64_t tap, int64_t c, float x) {
    expected[tap * d.channels + c] += d.output[at] * x;
  });
  d.for_each_output(
      [&](int64_t at, int64_t c) { expected[taps * d.channels + c] += d.output[at]; });
  return expected;
}

DepthwisePlane plane_of(DepthwiseCase& d, const Floats& zeros) {
  return {d.input.data(),  d.height,     d.width,     d.in_row, zeros.data(),
          d.output.data(), d.out_height, d.out_width, d.out_row};
}

void check_plane(const DepthwiseKernels& kernels, Numbers& numbers) {
  DepthwiseCase d(1, 2, numbers);
  const Floats zeros(d.width, 0.0f);
  kernels.run_plane(d.taps, plane_of(d, zeros), d.weights.data(), d.bias[0]);
  CHECK_WITH(equal(d.output, expected_output(d, d.bias.data())), d.describe("run_plane"));
}

// These kernels exist for 3 x 3, 5 x 5 and any height x 7.
bool has_plane_products(const DepthwiseCase& d) {
  return d.columns.kernel == 7 ||
         (d.rows.kernel == d.columns.kernel && (d.rows.kernel == 3 || d.rows.kernel == 5));
}

void check_plane_products(const DepthwiseKernels& kernels, int64_t lanes, Numbers& numbers) {
  DepthwiseCase d(1, 2, numbers);
  while (!has_plane_products(d)) d = DepthwiseCase(1, 2, numbers);
  const Floats zeros(d.width, 0.0f);
  d.for_each_output([&](int64_t at, int64_t) { d.output[at] = numbers.whole(); });
  Floats expected = expected_sums(d);
  Floats sums(expected.size() * lanes);
  for (int64_t i = 0; i < sums.size(); ++i) expected[i / lanes] += sums[i] = numbers.whole();
  kernels.add_plane_products(d.taps, plane_of(d, zeros), sums.data());
  bool right = true;
  for (int64_t i = 0; i < expected.size(); ++i) {
    float total = 0.0f;
    for (int64_t l = 0; l < lanes; ++l) total += sums[i * lanes + l];
    right = right && total == expected[i];
  }
  CHECK_WITH(right, d.describe("add_plane_products"));
}

void check_image(const DepthwiseKernels& kernels, Numbers& numbers) {
  DepthwiseCase d(numbers.between(1, 40), 4, numbers);
  const DepthwiseImage image{d.channels,  d.input.data(), d.height,        d.width,
                             d.in_row,    d.in_column,    d.output.data(), d.out_height,
                             d.out_width, d.out_row,      d.out_column};
  const float* bias = numbers.between(0, 1) == 0 ? d.bias.data() : nullptr;
  kernels.run_image(d.taps, image, d.weights.data(), bias);
  CHECK_WITH(equal(d.output, expected_output(d, bias)), d.describe("run_image"));

  d.for_each_output([&](int64_t at, int64_t) { d.output[at] = numbers.whole(); });
  Floats expected = expected_sums(d);
  Floats sums(expected.size());
  for (int64_t i = 0; i < sums.size(); ++i) expected[i] += sums[i] = numbers.whole();
  kernels.add_image_products(d.taps, image, sums.data());
  CHECK_WITH(equal(sums, expected), d.describe("add_image_products"));
}

void check_interleave(const DepthwiseKernels& kernels, Numbers& numbers) {
  for (int64_t pairs : {0, 1, 2, 7, 8, 9, 15, 16, 17, 40}) {
    Floats even(pairs), odd(pairs), target(2 * pairs, kGuard);
    for (int64_t j = 0; j < pairs; ++j) {
      even[j] = numbers.whole();
      odd[j] = numbers.whole();
    }
    kernels.interleave(even.data(), odd.data(), pairs, target.data());
    for (int64_t j = 0; j < pairs; ++j)
      CHECK(target[2 * j] == even[j] && target[2 * j + 1] == odd[j]);
  }
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  namespace cpu = fastconv::cpu;
  fastconv::testing::Numbers numbers(6);
  fastconv::testing::for_each_isa([&](cpu::Isa isa) {
    const cpu::DepthwiseKernels& kernels = cpu::depthwise_kernels(isa);
    for (int round = 0; round < 400; ++round) {
      cpu::check_plane(kernels, numbers);
      if (round % 4 == 0) cpu::check_plane_products(kernels, cpu::gemm_kernels(isa).lanes, numbers);
      cpu::check_image(kernels, numbers);
    }
    cpu::check_interleave(kernels, numbers);
  });
  return fastconv::testing::report();
}
