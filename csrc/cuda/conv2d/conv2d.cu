// SPDX-License-Identifier: MIT
// Which kernels serve a call of conv2d.h, and what memory they need.
#include "cuda/conv2d/conv2d.h"

#include "cuda/common/divmod.h"
#include "cuda/conv2d/conv2d_depthwise.h"
#include "cuda/conv2d/conv2d_general.h"
#include "cuda/conv2d/conv2d_grad_weight_gemm.h"
#include "cuda/conv2d/conv2d_implicit.h"
#include "cuda/conv2d/conv2d_partials.h"

namespace fastconv::cuda {
namespace {

Conv2dPlan general_plan() {
  return {Conv2dAlgorithm::kGeneral, Conv2dMath::kTf32x3, 0, 1, 0};
}

// Tensor cores pay where a product has enough rows, columns and depth to fill their tiles: below,
// most of a tile would be padding.
Conv2dAlgorithm choose_algorithm(const Conv2dCall& call) {
  constexpr int64_t kFewestChannels = 8;
  constexpr int64_t kShortestReduction = 16;
  const Conv2dShape& s = call.shape;
  if (s.group_out_channels() < kFewestChannels && conv2d_depthwise_applies(call))
    return Conv2dAlgorithm::kDepthwise;
  const bool wide = s.group_out_channels() >= kFewestChannels;
  const bool deep = s.group_in_channels() * s.taps() >= kShortestReduction;
  return wide && deep ? Conv2dAlgorithm::kImplicitGemm : Conv2dAlgorithm::kGeneral;
}

// Turns the plan into one of the depthwise kernels if they are asked for and serve the call.
bool set_depthwise(const Conv2dCall& call, Conv2dAlgorithm algorithm, Conv2dPlan* plan) {
  if (algorithm != Conv2dAlgorithm::kDepthwise || !conv2d_depthwise_applies(call)) return false;
  *plan = {Conv2dAlgorithm::kDepthwise, Conv2dMath::kTf32x3, 0, 1, 0};
  return true;
}

int64_t sum_bytes(Conv2dElement element) {
  return element == Conv2dElement::kFloat64 ? 8 : 4;
}

Conv2dPlan general_grad_weight_plan(const Conv2dGradWeight& call, int64_t splits) {
  Conv2dPlan plan = general_plan();
  plan.splits = splits >= 1 ? splits : conv2d_general_splits(call);
  plan.workspace_bytes = plan.splits * conv2d_partial_row(call, call.shape.group_in_channels()) *
                         sum_bytes(call.element);
  return plan;
}

}  // namespace

Conv2dPlan plan_conv2d_forward_as(const Conv2dForward& call, Conv2dAlgorithm algorithm, int tile) {
  Conv2dPlan plan = general_plan();
  if (algorithm == Conv2dAlgorithm::kImplicitGemm) plan_conv2d_forward_implicit(call, tile, &plan);
  set_depthwise(call, algorithm, &plan);
  return plan;
}

Conv2dPlan plan_conv2d_grad_input_as(const Conv2dGradInput& call, Conv2dAlgorithm algorithm,
                                     int tile) {
  Conv2dPlan plan = general_plan();
  if (algorithm == Conv2dAlgorithm::kImplicitGemm)
    plan_conv2d_grad_input_implicit(call, tile, &plan);
  set_depthwise(call, algorithm, &plan);
  return plan;
}

Conv2dPlan plan_conv2d_grad_weight_as(const Conv2dGradWeight& call, Conv2dAlgorithm algorithm,
                                      int tile, int64_t splits) {
  Conv2dPlan plan{};
  if (algorithm == Conv2dAlgorithm::kImplicitGemm &&
      plan_conv2d_grad_weight_implicit(call, tile, splits, &plan))
    return plan;
  if (set_depthwise(call, algorithm, &plan)) {
    plan.splits = splits >= 1 ? splits : conv2d_depthwise_splits(call);
    plan.workspace_bytes =
        plan.splits * conv2d_partial_row(call, 1) * static_cast<int64_t>(sizeof(float));
    return plan;
  }
  return general_grad_weight_plan(call, splits);
}

Conv2dPlan plan_conv2d_forward(const Conv2dForward& call) {
  return plan_conv2d_forward_as(call, choose_algorithm(call), -1);
}

Conv2dPlan plan_conv2d_grad_input(const Conv2dGradInput& call) {
  return plan_conv2d_grad_input_as(call, choose_algorithm(call), -1);
}

Conv2dPlan plan_conv2d_grad_weight(const Conv2dGradWeight& call) {
  return plan_conv2d_grad_weight_as(call, choose_algorithm(call), -1, 0);
}

cudaError_t launch_conv2d_forward(const Conv2dForward& call, cudaStream_t stream) {
  switch (call.plan.algorithm) {
    case Conv2dAlgorithm::kImplicitGemm:
      return launch_conv2d_forward_implicit(call, stream);
    case Conv2dAlgorithm::kDepthwise:
      return launch_conv2d_forward_depthwise(call, stream);
    case Conv2dAlgorithm::kGeneral:
      break;
  }
  return launch_conv2d_forward_general(call, stream);
}

cudaError_t launch_conv2d_grad_input(const Conv2dGradInput& call, cudaStream_t stream) {
  switch (call.plan.algorithm) {
    case Conv2dAlgorithm::kImplicitGemm:
      return launch_conv2d_grad_input_implicit(call, stream);
    case Conv2dAlgorithm::kDepthwise:
      return launch_conv2d_grad_input_depthwise(call, stream);
    case Conv2dAlgorithm::kGeneral:
      break;
  }
  return launch_conv2d_grad_input_general(call, stream);
}

cudaError_t launch_conv2d_grad_weight(const Conv2dGradWeight& call, cudaStream_t stream) {
  switch (call.plan.algorithm) {
    case Conv2dAlgorithm::kImplicitGemm:
      return launch_conv2d_grad_weight_implicit(call, stream);
    case Conv2dAlgorithm::kDepthwise:
      return launch_conv2d_grad_weight_depthwise(call, stream);
    case Conv2dAlgorithm::kGeneral:
      break;
  }
  return launch_conv2d_grad_weight_general(call, stream);
}

}  // namespace fastconv::cuda
