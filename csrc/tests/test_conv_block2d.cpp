// SPDX-License-Identifier: MIT
// The fused block against plain loops in double precision, on every instruction set: forward,
// winning taps and the three gradients, with and without threads.
#include <cstdint>
#include <string>

#include "check.h"
#include "conv_block2d_problem.h"
#include "cpu/conv_block2d/conv_block2d.h"

namespace {

using namespace fastconv;
using namespace fastconv::cpu;
using namespace fastconv::testing;

constexpr BlockCase kCases[] = {
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

void run(const ConvBlock2dShape& shape, const BlockTensors& t, BlockResults* r) {
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

bool taps_match(const ConvBlock2dShape& shape, const BlockResults& r, const BlockExpected& e) {
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

void test_case(const BlockCase& c, Activation activation, BlockPool pool, bool whole, Isa isa) {
  const ConvBlock2dShape shape = shape_of<ConvBlock2dShape>(c, activation, pool);
  const std::string what = std::string(isa_name(isa)) + " case " + std::to_string(&c - kCases) +
                           " activation " + std::to_string(static_cast<int>(activation)) +
                           (pool == BlockPool::kMax ? " max" : " avg");
  CHECK_WITH(conv_block2d_applies(shape), what);
  Numbers numbers(static_cast<uint64_t>(&c - kCases) + 1);
  const BlockTensors tensors(shape, whole, numbers);
  const BlockExpected expected = BlockOracle(shape, tensors).run();
  BlockResults results(shape);
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
    ConvBlock2dShape shape =
        shape_of<ConvBlock2dShape>(kCases[0], Activation::kLeakyRelu, BlockPool::kMax);
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
  const ConvBlock2dShape shape =
      shape_of<ConvBlock2dShape>(kCases[0], Activation::kNone, BlockPool::kMax);
  Numbers numbers(5);
  const BlockTensors tensors(shape, true, numbers);
  const BlockExpected expected = BlockOracle(shape, tensors).run();
  BlockResults results(shape);
  run(shape, tensors, &results);
  results.output[7] += 1e-2f;
  results.offsets[7] ^= 1;
  CHECK(!(distance(results.output, expected.output) < 2e-6));
  CHECK(!taps_match(shape, results, expected));
}

}  // namespace

int main() {
  fastconv::testing::for_each_isa([](Isa isa) {
    for (const BlockCase& c : kCases)
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
