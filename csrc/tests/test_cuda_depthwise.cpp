// SPDX-License-Identifier: MIT
// conv2d's depthwise CUDA kernels in the emulator against the plain loops of the CPU: every
// schedule, both memory formats, each kernel. Run under the sanitizers; the many shapes, types and
// error bounds are python_tests/test_cuda_shim_depthwise.py.
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/conv2d/conv2d_reference.h"
#include "cuda/conv2d/conv2d.h"
#include "cuda_check.h"

namespace fastconv::testing {
namespace {

using namespace fastconv::cuda;

constexpr Conv2dShape kShapes[] = {
    {2, 3, 6, 5, 3, 6, 5, 3, 3, 1, 1, 1, 1, 1, 1, 3},     // weights in registers
    {1, 35, 9, 8, 35, 5, 4, 5, 5, 2, 2, 2, 2, 1, 1, 35},  // and a row step of 2, two warps of lanes
    {1, 2, 7, 6, 4, 3, 6, 3, 2, 2, 1, 1, 0, 1, 1, 2},     // any kernel, two outputs per channel
    {1, 2, 9, 9, 2, 7, 7, 3, 3, 1, 1, 2, 2, 3, 3, 2},     // dilated
};

// The smallest whole numbers, which float32 sums exactly.
std::vector<float> numbers(int64_t count, int seed) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>((i * 7 + seed + i / 5) % 7 - 3));
  return values;
}

template <typename Call, typename Plan, typename Launch>
void run(Call& call, const Conv2dShape& shape, const Plan& plan, const Launch& launch) {
  call.shape = shape;
  call.element = Conv2dElement::kFloat32;
  call.device = {80, 4, 166912, 167936};
  call.plan = plan(call);
  CHECK(call.plan.algorithm == Conv2dAlgorithm::kDepthwise);
  call.workspace = cuda_shim::guarded_allocate(static_cast<size_t>(call.plan.workspace_bytes), 256,
                                               cuda_shim::Flush::kEnd, "workspace");
  CHECK_WITH(launch(call, nullptr) == cudaSuccess, cuda_shim::last_error());
  const bool first = cuda_shim::options().schedule == cuda_shim::Schedule::kAscending;
  if (first) CHECK(errors_end_the_call([&] { return launch(call, nullptr); }));
  CHECK(cuda_shim::guarded_free(call.workspace));
}

void check_equal(const std::vector<float>& result, const std::vector<float>& expected,
                 const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i)
    CHECK_WITH(result[i] == expected[i], what + " element " + std::to_string(i));
}

void test_shape(const Conv2dShape& s, bool channels_last, const std::string& what) {
  const auto strides = channels_last ? channels_last_strides : contiguous_strides;
  const Strides4 in = strides(s.in_channels, s.in_height, s.in_width);
  const Strides4 out = strides(s.out_channels, s.out_height, s.out_width);
  const Strides4 w = contiguous_strides(1, s.kernel_height, s.kernel_width);
  const auto input = numbers(s.batch * s.in_channels * s.in_pixels(), 1);
  const auto weight = numbers(s.out_channels * s.taps(), 2), bias = numbers(s.out_channels, 3);
  const auto grad_output = numbers(s.batch * s.out_channels * s.out_pixels(), 4);
  const auto algorithm = Conv2dAlgorithm::kDepthwise;

  std::vector<float> expected(grad_output.size()), result(grad_output.size(), NAN);
  cpu::conv2d_forward_reference(s, input.data(), in, weight.data(), bias.data(), expected.data(),
                                out);
  Conv2dForward forward{};
  forward.input = input.data();
  forward.input_strides = in;
  forward.weight = weight.data();
  forward.weight_strides = w;
  forward.bias = bias.data();
  forward.output = result.data();
  forward.output_strides = out;
  run(
      forward, s, [&](const auto& call) { return plan_conv2d_forward_as(call, algorithm, -1); },
      launch_conv2d_forward);
  check_equal(result, expected, what + " output");

  expected.assign(input.size(), 0.0f);
  result.assign(input.size(), NAN);
  cpu::conv2d_grad_input_reference(s, grad_output.data(), out, weight.data(), expected.data(), in);
  Conv2dGradInput grad_input{};
  grad_input.grad_output = grad_output.data();
  grad_input.grad_output_strides = out;
  grad_input.weight = weight.data();
  grad_input.weight_strides = w;
  grad_input.grad_input = result.data();
  grad_input.grad_input_strides = in;
  run(
      grad_input, s,
      [&](const auto& call) { return plan_conv2d_grad_input_as(call, algorithm, -1); },
      launch_conv2d_grad_input);
  check_equal(result, expected, what + " grad_input");

  std::vector<float> expected_bias(bias.size()), grad_bias(bias.size(), NAN);
  expected.assign(weight.size(), 0.0f);
  result.assign(weight.size(), NAN);
  cpu::conv2d_grad_weight_reference(s, grad_output.data(), out, input.data(), in, expected.data(),
                                    expected_bias.data());
  Conv2dGradWeight grad_weight{};
  grad_weight.grad_output = grad_output.data();
  grad_weight.grad_output_strides = out;
  grad_weight.input = input.data();
  grad_weight.input_strides = in;
  grad_weight.grad_weight = result.data();
  grad_weight.grad_weight_strides = w;
  grad_weight.grad_bias = grad_bias.data();
  run(
      grad_weight, s,
      [&](const auto& call) { return plan_conv2d_grad_weight_as(call, algorithm, -1, 2); },
      launch_conv2d_grad_weight);
  check_equal(result, expected, what + " grad_weight");
  check_equal(grad_bias, expected_bias, what + " grad_bias");
}

void test_every_schedule() {
  for_each_schedule([] {
    for (const Conv2dShape& shape : kShapes) {
      // The dilated one runs kernels of the one before: other addresses, the same meetings.
      if (kThreadSanitizer && shape.dilation_height > 1) continue;
      for (const bool channels_last : {false, true})
        test_shape(shape, channels_last,
                   "schedule " + std::to_string(static_cast<int>(cuda_shim::options().schedule)) +
                       " shape " + std::to_string(&shape - kShapes) +
                       (channels_last ? " channels_last" : ""));
    }
  });
}

// Sizes that 32 bits cannot number, with no memory behind them, are left to the general kernels.
void test_huge_calls_are_refused() {
  Conv2dForward call{};
  call.element = Conv2dElement::kFloat32;
  call.device = {80, 108, 166912, 167936};
  call.shape = {1 << 10, 64, 256, 256, 64, 256, 256, 3, 3, 1, 1, 1, 1, 1, 1, 64};
  call.input_strides = contiguous_strides(64, 256, 256);
  call.output_strides = call.input_strides;
  call.weight_strides = contiguous_strides(1, 3, 3);
  CHECK(plan_conv2d_forward(call).algorithm == Conv2dAlgorithm::kGeneral);
  call.shape.batch = 1 << 8;
  CHECK(plan_conv2d_forward(call).algorithm == Conv2dAlgorithm::kDepthwise);
}

}  // namespace
}  // namespace fastconv::testing

int main() {
  fastconv::testing::test_every_schedule();
  fastconv::testing::test_huge_calls_are_refused();
  return fastconv::testing::report();
}
