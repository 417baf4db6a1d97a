// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_grad_weight.h"

#include "common/checked.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

enum class WeightAlgorithm { kPanel, kDirect, kDot, kDepthwise };

const char* algorithm_name(WeightAlgorithm algorithm) {
  switch (algorithm) {
    case WeightAlgorithm::kDirect:
      return "direct";
    case WeightAlgorithm::kDot:
      return "dot";
    case WeightAlgorithm::kDepthwise:
      return "depthwise";
    case WeightAlgorithm::kPanel:
      break;
  }
  return "panel";
}

// Direct and dot add their registers to the sums once per strip of an image: that pays when an
// image has many pixels or the sums stay in L2. Measured: direct wins 1.1-1.5x on maps of 10 x 10
// pixels and more, panel wins 1.3x for 512 x 512 channels on 7 x 7.
WeightAlgorithm choose_algorithm(const Conv2dGradWeight& call, Isa isa) {
  constexpr int64_t kManyPixels = 128;
  constexpr int64_t kFewSums = 128 * 1024;
  constexpr int64_t kMaxDotSums = 8 * 1024;  // a vector each
  const Conv2dShape& s = call.shape;
  if (depthwise_applies(call)) return WeightAlgorithm::kDepthwise;
  if (!weight_direct_applies(s)) return WeightAlgorithm::kPanel;
  const int64_t sums = s.in_channels * s.taps() * s.out_channels;
  const int64_t lanes = gemm_kernels(isa).lanes;
  // Multiply-adds done, useful or not, per pixel and weight row (direct) and per row (dot).
  const int64_t direct_work = round_up(s.out_channels, lanes) * s.out_width;
  const int64_t dot_work = s.out_channels * round_up(s.out_width, lanes);
  if (call.grad_output_strides.column == 1 && sums <= kMaxDotSums &&
      10 * dot_work < 8 * direct_work)
    return WeightAlgorithm::kDot;
  return s.out_pixels() >= kManyPixels || sums <= kFewSums ? WeightAlgorithm::kDirect
                                                           : WeightAlgorithm::kPanel;
}

}  // namespace

Conv2dPlan plan_conv2d_grad_weight(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  Conv2dPlan plan{active_isa(), worthwhile_threads(s.multiply_adds(), 0), 0};
  switch (choose_algorithm(call, plan.isa)) {
    case WeightAlgorithm::kPanel:
      plan.scratch_floats = weight_panel_scratch_floats(s, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kDirect:
      plan.scratch_floats =
          weight_direct_scratch_floats(s, WeightVectors::kChannels, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kDot:
      plan.scratch_floats =
          weight_direct_scratch_floats(s, WeightVectors::kPixels, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kDepthwise:
      plan.scratch_floats = depthwise_scratch_floats(call, plan.threads);
      break;
  }
  return plan;
}

void conv2d_grad_weight(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch) {
  const WeightAlgorithm algorithm = choose_algorithm(call, plan.isa);
  record_kernel(KernelId::kConv2dGradWeight, algorithm_name(algorithm), plan.isa);
  switch (algorithm) {
    case WeightAlgorithm::kPanel:
      return grad_weight_panel(plan, call, scratch);
    case WeightAlgorithm::kDirect:
      return grad_weight_direct(plan, call, WeightVectors::kChannels, scratch);
    case WeightAlgorithm::kDot:
      return grad_weight_direct(plan, call, WeightVectors::kPixels, scratch);
    case WeightAlgorithm::kDepthwise:
      return depthwise_grad_weight(plan, call, scratch);
  }
}

}  // namespace fastconv::cpu
