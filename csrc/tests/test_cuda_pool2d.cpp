// SPDX-License-Identifier: MIT
// The choice of a pooling kernel, and every kernel of float32 against the plain loops of the CPU
// op: all schedules, both layouts. The sanitizers watch; values of other types are the Python
// tests'.
#include <string>
#include <utility>

#include "cpu/pool2d/pool2d_reference.h"
#include "cuda/pool2d/pool2d.h"
#include "cuda_check.h"

namespace fastconv::testing {
namespace {

using cuda::Pool2dAlgorithm;
using cuda::Pool2dCall;
using cuda::Pool2dElement;

// Sizes of an input [batch, channels, height, width] under a square window.
Pool2dShape square(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t kernel,
                   int64_t stride, int64_t padding, int64_t dilation = 1) {
  const int64_t extent = (kernel - 1) * dilation + 1;
  Pool2dShape s{};
  s.batch = batch;
  s.channels = channels;
  s.in_height = height;
  s.in_width = width;
  s.out_height = (height + 2 * padding - extent) / stride + 1;
  s.out_width = (width + 2 * padding - extent) / stride + 1;
  s.kernel_height = s.kernel_width = kernel;
  s.stride_height = s.stride_width = stride;
  s.padding_height = s.padding_width = padding;
  s.dilation_height = s.dilation_width = dilation;
  return s;
}

void test_choice() {
  const auto forward = [](const Pool2dShape& s, bool channels_last, Pool2dElement element,
                          bool aligned = true) {
    return cuda::choose_pool2d_forward({s, channels_last, element}, aligned);
  };
  const auto backward = [](const Pool2dShape& s, bool channels_last) {
    return cuda::choose_pool2d_backward({s, channels_last, Pool2dElement::kFloat32}, true);
  };
  const Pool2dShape lenet = square(64, 8, 28, 28, 2, 2, 0);
  CHECK(forward(lenet, false, Pool2dElement::kFloat32) == Pool2dAlgorithm::kRows);
  CHECK(forward(lenet, false, Pool2dElement::kFloat64) == Pool2dAlgorithm::kRows);
  CHECK(forward(lenet, false, Pool2dElement::kBFloat16) == Pool2dAlgorithm::kElements);
  CHECK(forward(lenet, true, Pool2dElement::kBFloat16) == Pool2dAlgorithm::kVectors);
  CHECK(forward(lenet, true, Pool2dElement::kFloat16, false) == Pool2dAlgorithm::kElements);
  CHECK(backward(lenet, false) == Pool2dAlgorithm::kRows);
  CHECK(backward(lenet, true) == Pool2dAlgorithm::kWindows);
  // Padding, another stride, or a last row beyond the input: no rows.
  CHECK(forward(square(1, 3, 8, 16, 2, 2, 1), false, Pool2dElement::kFloat32) ==
        Pool2dAlgorithm::kElements);
  CHECK(forward(square(1, 3, 8, 16, 3, 2, 0), false, Pool2dElement::kFloat32) ==
        Pool2dAlgorithm::kElements);
  Pool2dShape ceiled = square(1, 3, 9, 16, 2, 2, 0);
  CHECK(forward(ceiled, false, Pool2dElement::kFloat32) == Pool2dAlgorithm::kRows);
  ++ceiled.out_height;
  CHECK(forward(ceiled, false, Pool2dElement::kFloat32) == Pool2dAlgorithm::kElements);
  // Windows that overlap, or that are large, are not left to one thread each.
  CHECK(backward(square(2, 8, 14, 14, 3, 2, 1), true) == Pool2dAlgorithm::kVectors);
  CHECK(backward(square(2, 8, 14, 14, 7, 7, 0), true) == Pool2dAlgorithm::kVectors);
  CHECK(backward(square(2, 8, 14, 14, 2, 2, 0, 2), true) == Pool2dAlgorithm::kVectors);
  Pool2dShape apart_in_rows = square(2, 8, 14, 14, 2, 2, 0);
  apart_in_rows.kernel_width = 3;
  CHECK(backward(apart_in_rows, true) == Pool2dAlgorithm::kVectors);
  // 2^31 elements and strides near 2^31 need 64-bit indices.
  CHECK(forward(square(1 << 15, 1 << 4, 64, 64, 2, 2, 0), true, Pool2dElement::kFloat32) ==
        Pool2dAlgorithm::kHuge);
  CHECK(forward(square((1 << 15) - 1, 1 << 4, 64, 64, 2, 2, 0), true, Pool2dElement::kFloat32) ==
        Pool2dAlgorithm::kVectors);
  CHECK(forward(square(1, 8, 9, 9, 2, 1 << 30, 0), true, Pool2dElement::kFloat32) ==
        Pool2dAlgorithm::kHuge);
}

// Sizes, then one tensor of each kind.
struct Problem {
  Problem(const Pool2dShape& shape, bool channels_last)
      : call{shape, channels_last, Pool2dElement::kFloat32},
        inputs(shape.batch * shape.channels * shape.in_height * shape.in_width),
        outputs(shape.batch * shape.channels * shape.out_height * shape.out_width) {}

  Strides4 strides(int64_t height, int64_t width) const {
    return call.channels_last ? channels_last_strides(call.shape.channels, height, width)
                              : contiguous_strides(call.shape.channels, height, width);
  }
  Strides4 in() const { return strides(call.shape.in_height, call.shape.in_width); }
  Strides4 out() const { return strides(call.shape.out_height, call.shape.out_width); }

  Pool2dCall call;
  int64_t inputs;
  int64_t outputs;
};

bool same(Device<float>& actual, const Floats& expected) {
  for (int64_t i = 0; i < expected.size(); ++i)
    if (actual[i] != expected[i]) return false;
  return true;
}

Floats whole_numbers(int64_t count, uint64_t seed) {
  Numbers numbers(seed);
  Floats values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = numbers.whole();
  return values;
}

void fill(Device<float>& device, const Floats& values) {
  for (int64_t i = 0; i < values.size(); ++i) device[i] = values[i];
}

void check_max(const Problem& p, cuda_shim::Flush flush, const std::string& context) {
  const Floats x = whole_numbers(p.inputs, 1), grad = whole_numbers(p.outputs, 2);
  Floats y(p.outputs), grad_x(p.inputs);
  std::vector<uint8_t> winners(static_cast<size_t>(p.outputs));
  cpu::max_pool2d_forward_reference<float>(
      {p.call.shape, p.call.channels_last, x.data(), p.in(), y.data(), p.out(), winners.data()});
  cpu::max_pool2d_backward_reference<float>({p.call.shape, p.call.channels_last, grad.data(),
                                             p.out(), winners.data(), p.out(), grad_x.data(),
                                             p.in()});
  Device<float> input("input", p.inputs, flush, 16), output("output", p.outputs, flush, 16);
  Device<uint8_t> offsets("offsets", p.outputs, flush, 16);
  fill(input, x);
  CHECK(cuda::launch_max_pool2d_forward({p.call, input.data(), output.data(), offsets.data()},
                                        nullptr) == cudaSuccess);
  CHECK_WITH(same(output, y), context);
  bool same_winners = true;
  for (int64_t i = 0; i < p.outputs; ++i)
    same_winners &= offsets[i] == winners[static_cast<size_t>(i)];
  CHECK_WITH(same_winners, context);
  Device<float> grad_output("grad_output", p.outputs, flush, 16);
  Device<float> grad_input("grad_input", p.inputs, flush, 16);
  fill(grad_output, grad);
  CHECK(cuda::launch_max_pool2d_backward(
            {p.call, grad_output.data(), offsets.data(), grad_input.data()}, nullptr) ==
        cudaSuccess);
  CHECK_WITH(same(grad_input, grad_x), context);
}

// Divides by a power of two: exact.
void check_avg(const Problem& p, cuda_shim::Flush flush, const std::string& context) {
  constexpr int64_t kDivisor = 4;
  const Floats x = whole_numbers(p.inputs, 3), grad = whole_numbers(p.outputs, 4);
  Floats y(p.outputs), grad_x(p.inputs);
  cpu::avg_pool2d_forward_reference<float>(
      {p.call.shape, p.call.channels_last, {true, kDivisor}, x.data(), p.in(), y.data(), p.out()});
  cpu::avg_pool2d_backward_reference<float>({p.call.shape,
                                             p.call.channels_last,
                                             {true, kDivisor},
                                             grad.data(),
                                             p.out(),
                                             grad_x.data(),
                                             p.in()});
  Device<float> input("input", p.inputs, flush, 16), output("output", p.outputs, flush, 16);
  fill(input, x);
  CHECK(cuda::launch_avg_pool2d_forward({p.call, {true, kDivisor}, input.data(), output.data()},
                                        nullptr) == cudaSuccess);
  CHECK_WITH(same(output, y), context);
  Device<float> grad_output("grad_output", p.outputs, flush, 16);
  Device<float> grad_input("grad_input", p.inputs, flush, 16);
  fill(grad_output, grad);
  CHECK(cuda::launch_avg_pool2d_backward(
            {p.call, {true, kDivisor}, grad_output.data(), grad_input.data()}, nullptr) ==
        cudaSuccess);
  CHECK_WITH(same(grad_input, grad_x), context);
}

void test_kernels_against_plain_loops() {
  const std::pair<const char*, Pool2dShape> shapes[] = {
      {"2x2", square(2, 4, 7, 8, 2, 2, 0)},
      {"2x2 padded", square(1, 4, 6, 5, 2, 2, 1)},
      {"3x3s2", square(1, 8, 7, 6, 3, 2, 1)},
      {"3x3s3 odd channels", square(1, 3, 8, 7, 3, 3, 0)},
      {"64-bit indices", square(2, 4, 5, 5, 2, 1 << 30, 1)},
  };
  for_each_schedule([&] {
    for (const auto& [name, shape] : shapes)
      for (const bool channels_last : {false, true}) {
        const auto flush = channels_last ? cuda_shim::Flush::kStart : cuda_shim::Flush::kEnd;
        const std::string context = std::string(name) + (channels_last ? " channels_last" : "");
        check_max({shape, channels_last}, flush, context);
        check_avg({shape, channels_last}, flush, context);
      }
  });
}

void test_failing_launches() {
  const Problem p(square(1, 4, 4, 4, 2, 2, 0), false);
  Device<float> input("input", p.inputs), output("output", p.outputs);
  Device<uint8_t> offsets("offsets", p.outputs);
  CHECK(errors_end_the_call([&] {
    return cuda::launch_max_pool2d_forward({p.call, input.data(), output.data(), offsets.data()},
                                           nullptr);
  }));
  CHECK(errors_end_the_call([&] {
    return cuda::launch_max_pool2d_backward({p.call, output.data(), offsets.data(), input.data()},
                                            nullptr);
  }));
  CHECK(errors_end_the_call([&] {
    return cuda::launch_avg_pool2d_forward({p.call, {true, 4}, input.data(), output.data()},
                                           nullptr);
  }));
  CHECK(errors_end_the_call([&] {
    return cuda::launch_avg_pool2d_backward({p.call, {true, 4}, output.data(), input.data()},
                                            nullptr);
  }));
}

}  // namespace
}  // namespace fastconv::testing

int main() {
  fastconv::testing::test_failing_launches();
  fastconv::testing::test_choice();
  fastconv::testing::test_kernels_against_plain_loops();
  return fastconv::testing::report();
}
