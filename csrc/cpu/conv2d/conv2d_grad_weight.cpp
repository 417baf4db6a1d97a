// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_grad_weight.h"

#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

// Direct adds the registers to the sums once per strip of an image: that pays when an image has
// many pixels or the sums stay in L2. Measured: direct wins 1.1-1.5x on maps of 10 x 10 pixels and
// more, panel wins 1.3x for 512 x 512 channels on 7 x 7.
bool use_direct(const Conv2dShape& s) {
  constexpr int64_t kManyPixels = 128;
  constexpr int64_t kFewSums = 128 * 1024;
  return weight_direct_applies(s) &&
         (s.out_pixels() >= kManyPixels || s.in_channels * s.taps() * s.out_channels <= kFewSums);
}

}  // namespace

Conv2dPlan plan_conv2d_grad_weight(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  Conv2dPlan plan{active_isa(), worthwhile_threads(s.multiply_adds(), 0), 0};
  plan.scratch_floats = use_direct(s) ? weight_direct_scratch_floats(s, plan.isa, plan.threads)
                                      : weight_panel_scratch_floats(s, plan.isa, plan.threads);
  return plan;
}

void conv2d_grad_weight(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch) {
  const bool direct = use_direct(call.shape);
  record_kernel(KernelId::kConv2dGradWeight, direct ? "direct" : "panel", plan.isa);
  if (direct) {
    grad_weight_direct(plan, call, scratch);
  } else {
    grad_weight_panel(plan, call, scratch);
  }
}

}  // namespace fastconv::cpu
