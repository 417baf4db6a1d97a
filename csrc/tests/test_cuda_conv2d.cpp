// SPDX-License-Identifier: MIT
// conv2d's CUDA kernels and the host code that sets them up. Results against float64 oracles are
// checked from Python; here every kernel runs on one odd shape, under every schedule and, in CI,
// the sanitizers, against the plain loops of the CPU.
#include <vector>

#include "check.h"
#include "cpu/conv2d/conv2d_reference.h"
#include "cuda/conv2d/conv2d.h"
#include "cuda/conv2d/conv2d_axes.h"
#include "cuda/conv2d/conv2d_grad_weight_gemm.h"
#include "cuda/conv2d/conv2d_implicit.h"
#include "cuda/conv2d/conv2d_tiles.h"
#include "cuda_check.h"

namespace fastconv::testing {
namespace {

using namespace fastconv::cuda;

// --- Host code -----------------------------------------------------------------------------------

std::string text_of(const AxisShape& s) {
  std::string text = "input " + std::to_string(s.input) + " kernel " + std::to_string(s.kernel);
  text += " stride " + std::to_string(s.stride) + " padding " + std::to_string(s.padding);
  return text + " dilation " + std::to_string(s.dilation);
}

// Marks (result position, kernel position, source position) of every product of an axis.
std::vector<int> products_of(const AxisPhases& axis, int64_t results, int64_t kernel,
                             int64_t sources, const std::string& context) {
  std::vector<int> seen(static_cast<size_t>(results * kernel * sources));
  std::vector<int> covered(static_cast<size_t>(results));
  for (int p = 0; p < axis.count; ++p) {
    const AxisPhase& phase = axis.phases[p];
    for (int64_t i = 0; i < phase.axis.size; ++i) {
      const int64_t result = phase.axis.dest_first + i * axis.dest_step;
      CHECK_WITH(result >= 0 && result < results, context);
      ++covered[static_cast<size_t>(result)];
      for (int64_t r = 0; r < phase.axis.taps; ++r) {
        const int64_t tap = phase.first_tap + r * axis.kernel_step;
        const int64_t source = phase.axis.first + i * axis.source_step + r * axis.tap_step;
        CHECK_WITH(tap >= 0 && tap < kernel, context);
        if (source >= 0 && source < sources)
          ++seen[static_cast<size_t>((result * kernel + tap) * sources + source)];
      }
    }
  }
  for (int count : covered) CHECK_WITH(count == 1, context);
  return seen;
}

// The same from the definition: output o reads input o * stride - padding + r * dilation.
void test_axis(const AxisShape& s) {
  const std::string context = text_of(s);
  const auto forward =
      products_of(forward_axis(s), s.output, s.kernel, s.input, "forward " + context);
  const AxisPhases grad = grad_input_axis(s);
  CHECK_WITH(grad.possible, context);
  const auto backward = products_of(grad, s.input, s.kernel, s.output, "grad input " + context);
  for (int64_t o = 0; o < s.output; ++o) {
    for (int64_t r = 0; r < s.kernel; ++r) {
      for (int64_t y = 0; y < s.input; ++y) {
        const int expected = o * s.stride - s.padding + r * s.dilation == y ? 1 : 0;
        CHECK_WITH(forward[static_cast<size_t>((o * s.kernel + r) * s.input + y)] == expected,
                   "forward " + context);
        CHECK_WITH(backward[static_cast<size_t>((y * s.kernel + r) * s.output + o)] == expected,
                   "grad input " + context);
      }
    }
  }
}

void test_axes() {
  for (int64_t input : {1, 2, 5, 8})
    for (int64_t kernel = 1; kernel <= 7; ++kernel)
      for (int64_t stride = 1; stride <= 5; ++stride)
        for (int64_t padding : {0, 1, 4})
          for (int64_t dilation : {1, 2, 3, 4}) {
            const int64_t reach = input + 2 * padding - dilation * (kernel - 1) - 1;
            if (reach >= 0)
              test_axis({input, reach / stride + 1, kernel, stride, padding, dilation});
          }
}

void test_axes_refuse_what_they_cannot_count() {
  CHECK(!forward_axis({40, 24, kMaxGemmTapsSide + 1, 1, 0, 1}).possible);
  CHECK(forward_axis({40, 25, kMaxGemmTapsSide, 1, 0, 1}).possible);
  CHECK(!forward_axis({int64_t{1} << 31, int64_t{1} << 31, 1, 1, 0, 1}).possible);
  CHECK(!forward_axis({9, 3, 3, 1, int64_t{1} << 40, 1}).possible);
  CHECK(!grad_input_axis({100, 5, 3, kMaxPhases + 1, 0, 1}).possible);
}

void test_axes_of_windows() {
  const AxisShape seven = {7, 7, 3, 1, 1, 1};
  CHECK(forward_axis(seven, 0).phases[0].axis.size == 7);
  CHECK(forward_axis(seven, 1).phases[0].axis.size == 3);  // the last pixel is left out
  CHECK(forward_axis(seven, 2).phases[0].axis.size == 1);
  CHECK(!forward_axis(seven, 3).possible);  // no whole window
}

void test_choice_of_the_tile() {
  const cuda::Device device{80, 108, 166912, 167936};
  const auto choose = [&](int64_t rows, int64_t columns, Conv2dMath math) {
    return choose_conv2d_tile(rows, columns, 1, math, device);
  };
  CHECK(choose(128 * 108, 128, Conv2dMath::kBFloat16) == 0);
  CHECK(choose(128 * 108, 64, Conv2dMath::kBFloat16) == 1);   // half of 128 columns would be empty
  CHECK(choose(128 * 107, 128, Conv2dMath::kBFloat16) == 1);  // one multiprocessor would be idle
  CHECK(choose(64 * 60, 128, Conv2dMath::kBFloat16) == 2);
  CHECK(choose(1 << 20, 16, Conv2dMath::kBFloat16) == 3);
  CHECK(choose(49, 512, Conv2dMath::kBFloat16) == 2);  // no tile fills the GPU
  CHECK(choose(1 << 20, 512, Conv2dMath::kTf32x3) == kFirstTf32x3Tile);
}

void test_choice_of_the_splits() {
  const cuda::Device device{80, 108, 166912, 167936};
  const auto choose = [&](int64_t tiles, int64_t groups, int64_t pixels) {
    return choose_conv2d_splits(tiles, groups, pixels, 32, device);
  };
  CHECK(choose(1, 1, 1 << 20) == 216);  // two blocks for every multiprocessor
  CHECK(choose(216, 1, 1 << 20) == 1);
  CHECK(choose(1, 1, 8 * 32 * 5) == 5);  // eight stages for every block
  CHECK(choose(1, 1, 1) == 1);
  CHECK(choose(1, 60000, 1 << 20) == 1);  // the grid ends at 65535
}

// A contiguous float32 forward call, stride 1, "same" padding.
Conv2dForward plain_call(int64_t in, int64_t out, int64_t size, int64_t kernel) {
  Conv2dForward call{};
  call.shape = {64,     in, size, size,       out,        size, size, kernel,
                kernel, 1,  1,    kernel / 2, kernel / 2, 1,    1,    1};
  call.device = {90, 132, 166912, 167936};
  call.allow_tf32 = true;
  call.input_strides = contiguous_strides(in, size, size);
  call.weight_strides = contiguous_strides(in, kernel, kernel);
  call.output_strides = contiguous_strides(out, size, size);
  return call;
}

// The gradients of `call`, whose output lies as its input does.
Conv2dGradInput grad_input_of(const Conv2dForward& call) {
  Conv2dGradInput result{};
  static_cast<Conv2dCall&>(result) = call;
  result.grad_output_strides = result.grad_input_strides = call.input_strides;
  result.weight_strides = call.weight_strides;
  return result;
}

Conv2dGradWeight grad_weight_of(const Conv2dForward& call) {
  Conv2dGradWeight result{};
  static_cast<Conv2dCall&>(result) = call;
  result.grad_output_strides = result.input_strides = call.input_strides;
  result.grad_weight_strides = call.weight_strides;
  return result;
}

// Sizes past 2^31 with no memory behind them: the plan falls back instead of wrapping.
void test_huge_calls_are_planned() {
  Conv2dForward call{};
  call.shape = {1 << 12, 64, 1024, 1024, 64, 1024, 1024, 3, 3, 1, 1, 1, 1, 1, 1, 1};
  call.element = Conv2dElement::kBFloat16;
  call.device = {80, 108, 166912, 167936};
  call.input_strides = channels_last_strides(64, 1024, 1024);
  call.output_strides = call.input_strides;
  call.weight_strides = contiguous_strides(64, 3, 3);
  CHECK(plan_conv2d_forward(call).algorithm == Conv2dAlgorithm::kGeneral);
  call.shape.batch = (1 << 11) - 1;  // 2^31 - 2^20 pixels, 2^37 elements
  CHECK(plan_conv2d_forward(call).algorithm == Conv2dAlgorithm::kImplicitGemm);

  Conv2dGradInput input = grad_input_of(call);
  Conv2dGradWeight weight = grad_weight_of(call);
  CHECK(plan_conv2d_grad_input(input).algorithm == Conv2dAlgorithm::kImplicitGemm);
  CHECK(plan_conv2d_grad_weight(weight).algorithm == Conv2dAlgorithm::kImplicitGemm);
  input.shape.batch = weight.shape.batch = 1 << 11;
  CHECK(plan_conv2d_grad_input(input).algorithm == Conv2dAlgorithm::kGeneral);
  CHECK(plan_conv2d_grad_weight(weight).algorithm == Conv2dAlgorithm::kGeneral);
  // Pixels that 32 bits still count, but not in whole stages.
  weight.shape.batch = 1;
  weight.shape.in_height = weight.shape.out_height = 65537;
  weight.shape.in_width = weight.shape.out_width = 32767;
  CHECK(plan_conv2d_grad_weight(weight).algorithm == Conv2dAlgorithm::kImplicitGemm);
  weight.shape.in_height = weight.shape.out_height = 153391689;
  weight.shape.in_width = weight.shape.out_width = 14;  // 2^31 - 2
  CHECK(plan_conv2d_grad_weight(weight).algorithm == Conv2dAlgorithm::kGeneral);
}

void test_long_kernels_are_planned() {
  Conv2dForward call = plain_call(64, 64, 56, 17);
  CHECK(plan_conv2d_forward(call).algorithm == Conv2dAlgorithm::kGeneral);
  Conv2dGradInput input = grad_input_of(call);
  CHECK(plan_conv2d_grad_input(input).algorithm == Conv2dAlgorithm::kGeneral);
  input.shape.stride_height = input.shape.stride_width = 2;  // phases of at most nine taps a side
  input.shape.out_height = input.shape.out_width = 28;
  input.grad_output_strides = contiguous_strides(64, 28, 28);
  CHECK(plan_conv2d_grad_input(input).algorithm == Conv2dAlgorithm::kImplicitGemm);
  CHECK(plan_conv2d_grad_weight(grad_weight_of(call)).algorithm == Conv2dAlgorithm::kImplicitGemm);
  call = plain_call(64, 64, 56, 15);
  CHECK(plan_conv2d_forward(call).algorithm == Conv2dAlgorithm::kImplicitGemm);
}

void test_choice_of_the_direct_kernels() {
  const auto algorithm = [](const Conv2dForward& call) {
    return plan_conv2d_forward(call).algorithm;
  };
  CHECK(algorithm(plain_call(1, 6, 28, 5)) == Conv2dAlgorithm::kDirect);    // LeNet
  CHECK(algorithm(plain_call(6, 16, 14, 5)) == Conv2dAlgorithm::kDirect);   // few multiply-adds
  CHECK(algorithm(plain_call(3, 64, 224, 3)) == Conv2dAlgorithm::kDirect);  // VGG's first: memory
  CHECK(algorithm(plain_call(3, 5, 224, 7)) == Conv2dAlgorithm::kDirect);   // tiles half empty
  CHECK(algorithm(plain_call(3, 64, 224, 7)) == Conv2dAlgorithm::kImplicitGemm);
  CHECK(algorithm(plain_call(64, 64, 56, 3)) == Conv2dAlgorithm::kImplicitGemm);

  Conv2dForward call = plain_call(3, 32, 32, 3);
  CHECK(algorithm(call) == Conv2dAlgorithm::kDirect);
  call.element = Conv2dElement::kBFloat16;
  CHECK(algorithm(call) == Conv2dAlgorithm::kImplicitGemm);
  call.element = Conv2dElement::kFloat64;
  CHECK(algorithm(call) == Conv2dAlgorithm::kGeneral);
  call.element = Conv2dElement::kFloat32;
  call.output_strides = channels_last_strides(32, 32, 32);
  CHECK(algorithm(call) == Conv2dAlgorithm::kDirect);
  call.weight_strides = channels_last_strides(3, 3, 3);
  CHECK(algorithm(call) == Conv2dAlgorithm::kDirect);
  call.output_strides.row += 4;  // rows apart from each other
  CHECK(algorithm(call) == Conv2dAlgorithm::kImplicitGemm);
  call = plain_call(3, 32, 32, 3);
  call.weight_strides.column = 2;  // taps that are not evenly spaced
  CHECK(algorithm(call) == Conv2dAlgorithm::kImplicitGemm);
  call = plain_call(3, 34, 32, 3);
  call.output_strides = channels_last_strides(34, 32, 32);  // no whole vectors of channels
  CHECK(algorithm(call) == Conv2dAlgorithm::kImplicitGemm);
}

// A layer of stride 2 that halves the image.
Conv2dForward stem_call(int64_t out, int64_t size, int64_t kernel) {
  Conv2dForward call = plain_call(3, out, size, kernel);
  call.shape.stride_height = call.shape.stride_width = 2;
  call.shape.out_height = call.shape.out_width = size / 2;
  call.output_strides = contiguous_strides(out, size / 2, size / 2);
  return call;
}

void test_choice_of_the_direct_kernels_for_first_layers() {
  const auto algorithm = [](const Conv2dForward& call) {
    return plan_conv2d_forward(call).algorithm;
  };
  Conv2dForward call = stem_call(32, 224, 3);
  CHECK(algorithm(call) == Conv2dAlgorithm::kDirect);
  call.output_strides = channels_last_strides(32, 112, 112);
  CHECK(algorithm(call) == Conv2dAlgorithm::kDirect);
  CHECK(algorithm(stem_call(64, 224, 7)) == Conv2dAlgorithm::kImplicitGemm);  // 147 products
  call = stem_call(32, 224, 3);
  call.shape.stride_width = 5;
  CHECK(algorithm(call) == Conv2dAlgorithm::kImplicitGemm);

  Conv2dGradWeight weight{};
  static_cast<Conv2dCall&>(weight) = stem_call(32, 224, 3);
  weight.grad_output_strides = contiguous_strides(32, 112, 112);
  weight.input_strides = contiguous_strides(3, 224, 224);
  weight.grad_weight_strides = contiguous_strides(3, 3, 3);
  CHECK(plan_conv2d_grad_weight(weight).algorithm == Conv2dAlgorithm::kDirect);
  Conv2dGradInput input{};
  static_cast<Conv2dCall&>(input) = weight;
  input.grad_output_strides = weight.grad_output_strides;
  input.weight_strides = contiguous_strides(3, 3, 3);
  input.grad_input_strides = weight.input_strides;
  CHECK(plan_conv2d_grad_input(input).algorithm != Conv2dAlgorithm::kDirect);
}

void test_choice_of_the_pooling_epilogue() {
  Conv2dForward call = plain_call(64, 64, 56, 3);
  call.output_strides = contiguous_strides(64, 28, 28);
  const auto pools = [&](BlockPool kind, int64_t height, int64_t width) {
    call.pool = {kind, height, width};
    return conv2d_pools(call);
  };
  CHECK(pools(BlockPool::kNone, 0, 0));
  CHECK(pools(BlockPool::kMax, 2, 2));
  CHECK(pools(BlockPool::kAvg, 4, 4));
  CHECK(pools(BlockPool::kMax, 1, 16));
  CHECK(!pools(BlockPool::kMax, 3, 3));   // no power of two
  CHECK(!pools(BlockPool::kMax, 4, 8));   // more than a strip
  CHECK(!pools(BlockPool::kMax, 1, 32));  //
  CHECK(!pools(BlockPool::kMax, int64_t{1} << 33, 1));
  call.shape.out_height = 3;
  CHECK(!pools(BlockPool::kMax, 4, 1));  // no whole window
  call = plain_call(64, 4, 56, 3);       // columns of the product mostly empty
  CHECK(!pools(BlockPool::kMax, 2, 2));
  call = plain_call(64, 64, 56, 3);
  call.device.compute_capability = 75;
  CHECK(!pools(BlockPool::kMax, 2, 2));
  call.device.compute_capability = 90;
  call.element = Conv2dElement::kFloat64;
  CHECK(!pools(BlockPool::kMax, 2, 2));
  call.element = Conv2dElement::kFloat32;
  call.shape.batch = int64_t{1} << 20;  // 2^31.6 pixels
  CHECK(!pools(BlockPool::kMax, 2, 2));
  CHECK(pools(BlockPool::kNone, 0, 0));
}

// --- Kernels -------------------------------------------------------------------------------------

// Few threads: ThreadSanitizer takes its time over each.
constexpr Conv2dShape kGrouped = {2, 12, 5, 6, 10, 3, 3, 3, 2, 2, 2, 1, 0, 1, 1, 2};
constexpr Conv2dShape kFewChannels = {3, 2, 5, 6, 5, 5, 5, 3, 4, 1, 1, 1, 1, 1, 1, 1};
constexpr Conv2dShape kFirstLayer = {2, 3, 7, 8, 6, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1, 1};

// Everything about one convolution on small integers, which every format sums exactly.
struct Operands {
  std::vector<float> input, weight, bias, grad_output;
  Strides4 input_strides, weight_strides, output_strides;

  explicit Operands(const Conv2dShape& s)
      : input_strides(contiguous_strides(s.in_channels, s.in_height, s.in_width)),
        weight_strides(contiguous_strides(s.group_in_channels(), s.kernel_height, s.kernel_width)),
        output_strides(contiguous_strides(s.out_channels, s.out_height, s.out_width)) {
    const auto fill = [](std::vector<float>& values, int64_t count, int seed) {
      for (int64_t i = 0; i < count; ++i)
        values.push_back(static_cast<float>((i * 7 + seed + i / 5) % 7 - 3));
    };
    fill(input, s.batch * s.in_channels * s.in_pixels(), 1);
    fill(weight, s.out_channels * s.group_in_channels() * s.taps(), 2);
    fill(bias, s.out_channels, 3);
    fill(grad_output, s.batch * s.out_channels * s.out_pixels(), 4);
  }
};

// Plans, launches on guarded workspace, and checks that the launch went well.
template <typename Call, typename Plan, typename Launch>
void run(const Conv2dShape& shape, Call& call, const Plan& plan, const Launch& launch) {
  call.shape = shape;
  call.element = Conv2dElement::kFloat32;
  call.device = {80, 4, 166912, 167936};
  call.plan = plan(call);
  call.workspace = cuda_shim::guarded_allocate(static_cast<size_t>(call.plan.workspace_bytes), 256,
                                               cuda_shim::Flush::kEnd, "workspace");
  const cudaError_t error = launch(call, nullptr);
  CHECK_WITH(error == cudaSuccess, cuda_shim::last_error());
  const bool first = cuda_shim::options().schedule == cuda_shim::Schedule::kAscending;
  if (first) CHECK(errors_end_the_call([&] { return launch(call, nullptr); }));
  CHECK(cuda_shim::guarded_free(call.workspace));
}

void check_equal(const std::vector<float>& result, const std::vector<float>& expected) {
  for (size_t i = 0; i < expected.size(); ++i)
    CHECK_WITH(result[i] == expected[i], "element " + std::to_string(i));
}

void test_kernels(const Conv2dShape& s, Conv2dAlgorithm algorithm, bool allow_tf32) {
  const Operands t(s);
  std::vector<float> expected(static_cast<size_t>(s.batch * s.out_channels * s.out_pixels()));
  cpu::conv2d_forward_reference(s, t.input.data(), t.input_strides, t.weight.data(), t.bias.data(),
                                expected.data(), t.output_strides);
  std::vector<float> result(expected.size(), NAN);
  Conv2dForward forward{};
  forward.allow_tf32 = allow_tf32;
  forward.input = t.input.data();
  forward.input_strides = t.input_strides;
  forward.weight = t.weight.data();
  forward.weight_strides = t.weight_strides;
  forward.bias = t.bias.data();
  forward.output = result.data();
  forward.output_strides = t.output_strides;
  run(
      s, forward, [&](const auto& call) { return plan_conv2d_forward_as(call, algorithm, -1); },
      launch_conv2d_forward);
  CHECK(forward.plan.algorithm == algorithm);
  check_equal(result, expected);

  expected.assign(t.input.size(), 0.0f);
  cpu::conv2d_grad_input_reference(s, t.grad_output.data(), t.output_strides, t.weight.data(),
                                   expected.data(), t.input_strides);
  result.assign(t.input.size(), NAN);
  Conv2dGradInput grad_input{};
  grad_input.allow_tf32 = allow_tf32;
  grad_input.grad_output = t.grad_output.data();
  grad_input.grad_output_strides = t.output_strides;
  grad_input.weight = t.weight.data();
  grad_input.weight_strides = t.weight_strides;
  grad_input.grad_input = result.data();
  grad_input.grad_input_strides = t.input_strides;
  run(
      s, grad_input,
      [&](const auto& call) { return plan_conv2d_grad_input_as(call, algorithm, -1); },
      launch_conv2d_grad_input);
  const bool steps = algorithm == Conv2dAlgorithm::kDirect && s.stride_height > 1;
  CHECK(grad_input.plan.algorithm == (steps ? Conv2dAlgorithm::kGeneral : algorithm));
  check_equal(result, expected);

  std::vector<float> expected_bias(t.bias.size());
  expected.assign(t.weight.size(), 0.0f);
  cpu::conv2d_grad_weight_reference(s, t.grad_output.data(), t.output_strides, t.input.data(),
                                    t.input_strides, expected.data(), expected_bias.data());
  result.assign(t.weight.size(), NAN);
  std::vector<float> bias(t.bias.size(), NAN);
  Conv2dGradWeight grad_weight{};
  grad_weight.allow_tf32 = allow_tf32;
  grad_weight.grad_output = t.grad_output.data();
  grad_weight.grad_output_strides = t.output_strides;
  grad_weight.input = t.input.data();
  grad_weight.input_strides = t.input_strides;
  grad_weight.grad_weight = result.data();
  grad_weight.grad_weight_strides = t.weight_strides;
  grad_weight.grad_bias = bias.data();
  run(
      s, grad_weight,
      [&](const auto& call) { return plan_conv2d_grad_weight_as(call, algorithm, -1, 2); },
      launch_conv2d_grad_weight);
  CHECK(grad_weight.plan.algorithm == algorithm);
  check_equal(result, expected);
  check_equal(bias, expected_bias);
}

// 2 x 2 windows over 5 x 7 pixels: the last row and column are left out.
void test_pooling_epilogue() {
  constexpr Conv2dShape s = {1, 4, 5, 7, 9, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1};
  const Operands t(s);
  std::vector<float> full(static_cast<size_t>(s.out_channels * s.out_pixels()));
  cpu::conv2d_forward_reference(s, t.input.data(), t.input_strides, t.weight.data(), t.bias.data(),
                                full.data(), t.output_strides);
  std::vector<float> expected;
  std::vector<uint8_t> winners;
  for (int64_t at = 0; at < s.out_channels * 6; ++at) {
    const int64_t first = at / 6 * s.out_pixels() + at / 3 % 2 * 2 * s.out_width + at % 3 * 2;
    uint8_t winner = 0;
    const auto tap = [&](int i) {
      return full[static_cast<size_t>(first + i / 2 * s.out_width + i % 2)];
    };
    for (uint8_t i = 1; i < 4; ++i)
      if (tap(i) > tap(winner)) winner = i;
    expected.push_back(tap(winner));
    winners.push_back(winner);
  }
  std::vector<float> result(expected.size(), NAN);
  std::vector<uint8_t> offsets(expected.size(), 255);
  Conv2dForward call{};
  call.input = t.input.data();
  call.input_strides = t.input_strides;
  call.weight = t.weight.data();
  call.weight_strides = t.weight_strides;
  call.bias = t.bias.data();
  call.output = result.data();
  call.output_strides = contiguous_strides(s.out_channels, 2, 3);
  call.pool = {BlockPool::kMax, 2, 2};
  call.offsets = offsets.data();
  run(
      s, call,
      [](const auto& c) { return plan_conv2d_forward_as(c, Conv2dAlgorithm::kImplicitGemm, -1); },
      launch_conv2d_forward);
  check_equal(result, expected);
  CHECK(offsets == winners);
}

void test_kernels_under_every_schedule() {
  for_each_schedule([] {
    test_pooling_epilogue();
    test_kernels(kGrouped, Conv2dAlgorithm::kImplicitGemm, true);
    test_kernels(kFewChannels, Conv2dAlgorithm::kDirect, true);
    test_kernels(kFirstLayer, Conv2dAlgorithm::kDirect, true);
  });
  // What differs in these is not how threads meet.
  test_kernels(kGrouped, Conv2dAlgorithm::kImplicitGemm, false);
  test_kernels(kGrouped, Conv2dAlgorithm::kGeneral, false);
}

}  // namespace
}  // namespace fastconv::testing

int main() {
  using namespace fastconv::testing;
  test_axes();
  test_axes_refuse_what_they_cannot_count();
  test_axes_of_windows();
  test_choice_of_the_tile();
  test_choice_of_the_splits();
  test_choice_of_the_direct_kernels();
  test_choice_of_the_direct_kernels_for_first_layers();
  test_choice_of_the_pooling_epilogue();
  test_huge_calls_are_planned();
  test_long_kernels_are_planned();
  test_kernels_under_every_schedule();
  return report();
}
