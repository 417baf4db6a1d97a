// SPDX-License-Identifier: MIT
// Which kernels serve a call of conv2d.h, and what memory they need.
#include "cuda/conv2d/conv2d.h"

#include "cuda/common/divmod.h"
#include "cuda/conv2d/conv2d_depthwise.h"
#include "cuda/conv2d/conv2d_direct.h"
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
constexpr int64_t kFewestChannels = 8;
constexpr int64_t kShortestReduction = 16;

bool fills_tensor_cores(const Conv2dShape& s) {
  return s.group_out_channels() >= kFewestChannels &&
         s.group_in_channels() * s.taps() >= kShortestReduction;
}

// Where they would be filled, the direct kernels are still better up to so few products per output
// that float32 multiplies faster than memory delivers (some 40 to 80 products for every float that
// is moved, on the GPUs of today), or in layers so small that the number of launches decides.
bool direct_pays(const Conv2dShape& s) {
  constexpr int64_t kFewProducts = 48;
  constexpr int64_t kFewMultiplyAdds = 1'000'000;  // of one image
  const int64_t products = s.group_in_channels() * s.taps();
  return !fills_tensor_cores(s) || products <= kFewProducts ||
         s.out_channels * s.out_pixels() * products <= kFewMultiplyAdds;
}

Conv2dAlgorithm choose_algorithm(const Conv2dCall& call, bool direct_applies) {
  if (direct_applies && direct_pays(call.shape)) return Conv2dAlgorithm::kDirect;
  if (fills_tensor_cores(call.shape)) return Conv2dAlgorithm::kImplicitGemm;
  const bool few = call.shape.group_out_channels() < kFewestChannels;
  return few && conv2d_depthwise_applies(call) ? Conv2dAlgorithm::kDepthwise
                                               : Conv2dAlgorithm::kGeneral;
}

// Turns the plan into one of the depthwise or direct kernels if they are asked for and serve the
// call.
template <typename Call>
bool set_plain(const Call& call, Conv2dAlgorithm algorithm, Conv2dPlan* plan) {
  const bool applies = algorithm == Conv2dAlgorithm::kDepthwise ? conv2d_depthwise_applies(call)
                       : algorithm == Conv2dAlgorithm::kDirect  ? conv2d_direct_applies(call)
                                                                : false;
  if (applies) *plan = {algorithm, Conv2dMath::kTf32x3, 0, 1, 0};
  return applies;
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
  set_plain(call, algorithm, &plan);
  return plan;
}

Conv2dPlan plan_conv2d_grad_input_as(const Conv2dGradInput& call, Conv2dAlgorithm algorithm,
                                     int tile) {
  Conv2dPlan plan = general_plan();
  if (algorithm == Conv2dAlgorithm::kImplicitGemm)
    plan_conv2d_grad_input_implicit(call, tile, &plan);
  set_plain(call, algorithm, &plan);
  return plan;
}

Conv2dPlan plan_conv2d_grad_weight_as(const Conv2dGradWeight& call, Conv2dAlgorithm algorithm,
                                      int tile, int64_t splits) {
  Conv2dPlan plan{};
  if (algorithm == Conv2dAlgorithm::kImplicitGemm &&
      plan_conv2d_grad_weight_implicit(call, tile, splits, &plan))
    return plan;
  if (set_plain(call, algorithm, &plan)) {
    if (algorithm == Conv2dAlgorithm::kDirect) {
      plan.workspace_bytes = conv2d_direct_workspace_bytes(call);
    } else {
      plan.splits = splits >= 1 ? splits : conv2d_depthwise_splits(call);
      plan.workspace_bytes =
          plan.splits * conv2d_partial_row(call, 1) * static_cast<int64_t>(sizeof(float));
    }
    return plan;
  }
  return general_grad_weight_plan(call, splits);
}

Conv2dPlan plan_conv2d_forward(const Conv2dForward& call) {
  return plan_conv2d_forward_as(
      call, choose_algorithm(call, !call.pools() && conv2d_direct_applies(call)), -1);
}

bool conv2d_pools(const Conv2dForward& call) {
  return !call.pools() || plan_conv2d_forward(call).algorithm == Conv2dAlgorithm::kImplicitGemm;
}

Conv2dPlan plan_conv2d_grad_input(const Conv2dGradInput& call) {
  // The direct kernel computes four input channels at a time, there being four or one; the
  // depthwise one does no more than it has to.
  const bool one = call.shape.in_channels == 1 && !fills_tensor_cores(call.shape);
  return plan_conv2d_grad_input_as(call,
                                   choose_algorithm(call, !one && conv2d_direct_applies(call)), -1);
}

Conv2dPlan plan_conv2d_grad_weight(const Conv2dGradWeight& call) {
  return plan_conv2d_grad_weight_as(call, choose_algorithm(call, conv2d_direct_applies(call)), -1,
                                    0);
}

cudaError_t launch_conv2d_forward(const Conv2dForward& call, cudaStream_t stream) {
  if (call.pools() && call.plan.algorithm != Conv2dAlgorithm::kImplicitGemm)
    return cudaErrorInvalidValue;
  switch (call.plan.algorithm) {
    case Conv2dAlgorithm::kImplicitGemm:
      return launch_conv2d_forward_implicit(call, stream);
    case Conv2dAlgorithm::kDepthwise:
      return launch_conv2d_forward_depthwise(call, stream);
    case Conv2dAlgorithm::kDirect:
      return launch_conv2d_forward_direct(call, stream);
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
    case Conv2dAlgorithm::kDirect:
      return launch_conv2d_grad_input_direct(call, stream);
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
    case Conv2dAlgorithm::kDirect:
      return launch_conv2d_grad_weight_direct(call, stream);
    case Conv2dAlgorithm::kGeneral:
      break;
  }
  return launch_conv2d_grad_weight_general(call, stream);
}

}  // namespace fastconv::cuda
