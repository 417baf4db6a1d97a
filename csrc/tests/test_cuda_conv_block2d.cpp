// SPDX-License-Identifier: MIT
// The CUDA kernels of the fused block in the emulator, against plain loops in double precision:
// every schedule, every pooling, several tiles and blocks. Run under the sanitizers; values, ties
// and parity are python_tests/test_cuda_shim_conv_block2d.py.
#include <cstdint>
#include <string>

#include "check.h"
#include "conv_block2d_problem.h"
#include "cuda/conv_block2d/conv_block2d.h"
#include "cuda_check.h"

namespace {

using namespace fastconv;
using cuda::BlockPool;
using cuda::ConvBlock2dShape;
using namespace fastconv::testing;

constexpr cuda::Device kDevice{80, 4, 96 * 1024, 100 * 1024};

constexpr BlockCase kCases[] = {
    {3, 1, 12, 11, 6, 5, 5, 2},  // several tiles of an image
    {5, 3, 6, 6, 17, 3, 3, 1},   // several images in a tile, several blocks of channels
    {1, 2, 9, 9, 3, 7, 7, 3},    //
    {2, 40, 5, 6, 4, 2, 3, 0},   // any kernel size, several chunks of channels and weights
    {2, 2, 4, 3, 2, 3, 3, 4},    // padding wider than the kernel
    {9, 33, 2, 2, 3, 1, 1, 0},   //
};

cudaError_t forward(const ConvBlock2dShape& shape, const BlockTensors& t, BlockResults* r) {
  const Conv2dShape& s = shape.conv;
  const Strides4 strides = contiguous_strides(s.in_channels, s.in_height, s.in_width);
  return cuda::launch_conv_block2d_forward(
      {shape, kDevice, t.input.data(), strides, t.weight.data(), t.bias.data(), r->output.data(),
       r->offsets.empty() ? nullptr : r->offsets.data()},
      nullptr);
}

cudaError_t backward(const ConvBlock2dShape& shape, const BlockTensors& t, BlockResults* r) {
  const Conv2dShape& s = shape.conv;
  cuda::ConvBlock2dBackward call{shape,
                                 kDevice,
                                 t.grad.data(),
                                 r->output.data(),
                                 r->offsets.empty() ? nullptr : r->offsets.data(),
                                 t.input.data(),
                                 contiguous_strides(s.in_channels, s.in_height, s.in_width),
                                 t.weight.data(),
                                 t.bias.data(),
                                 r->grad_input.data(),
                                 r->grad_weight.data(),
                                 r->grad_bias.data(),
                                 nullptr};
  Floats workspace(cuda::conv_block2d_backward_workspace_bytes(call) /
                   static_cast<int64_t>(sizeof(float)));
  call.workspace = workspace.data();
  return cuda::launch_conv_block2d_backward(call, nullptr);
}

void test_case(const BlockCase& c, Activation activation, BlockPool pool) {
  const auto shape = shape_of<ConvBlock2dShape>(c, activation, pool);
  const std::string what = "case " + std::to_string(&c - kCases) + " pool " +
                           std::to_string(static_cast<int>(pool)) + " schedule " +
                           std::to_string(static_cast<int>(cuda_shim::options().schedule));
  CHECK_WITH(conv_block2d_applies(shape), what);
  Numbers numbers(7);
  const BlockTensors tensors(shape, false, numbers);
  const BlockExpected expected = BlockOracle(shape, tensors).run();
  BlockResults results(shape);
  CHECK_WITH(forward(shape, tensors, &results) == cudaSuccess, what);
  CHECK_WITH(backward(shape, tensors, &results) == cudaSuccess, what);
  CHECK_WITH(distance(results.output, expected.output, 1) < 1e-6, what + " output");
  CHECK_WITH(distance(results.grad_input, expected.grad_input, 1) < 1e-6, what + " grad_input");
  CHECK_WITH(distance(results.grad_weight, expected.grad_weight, 1) < 1e-6, what + " grad_weight");
  CHECK_WITH(distance(results.grad_bias, expected.grad_bias, 1) < 1e-6, what + " grad_bias");
}

void test_failing_launches() {
  for (const BlockPool pool : {BlockPool::kNone, BlockPool::kMax, BlockPool::kAvg})
    for (const Activation activation : {Activation::kNone, Activation::kTanh}) {
      const auto shape = shape_of<ConvBlock2dShape>(kCases[1], activation, pool);
      Numbers numbers(3);
      const BlockTensors tensors(shape, false, numbers);
      BlockResults results(shape);
      CHECK(errors_end_the_call([&] { return forward(shape, tensors, &results); }));
      CHECK(errors_end_the_call([&] { return backward(shape, tensors, &results); }));
    }
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
  for_each_schedule([] {
    for (const BlockCase& c : kCases)
      for (const BlockPool pool : {BlockPool::kNone, BlockPool::kMax, BlockPool::kAvg})
        test_case(c, pool == BlockPool::kMax ? Activation::kRelu : Activation::kTanh, pool);
  });
  if (!kThreadSanitizer) test_failing_launches();
  test_negative_control();
  return report();
}
