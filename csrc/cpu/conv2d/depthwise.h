// SPDX-License-Identifier: MIT
// Depthwise convolution: groups == in_channels == out_channels. No reduction over channels, so no
// GEMM: planes (NCHW) or channel vectors (channels_last) are read in place. Bound by memory.
// Called by conv2d.cpp and conv2d_grad_weight.cpp, under the contract of conv2d.h.
#pragma once

#include "cpu/conv2d/conv2d.h"

namespace fastconv::cpu {

// Whether the kernels cover these calls; the general algorithms cover all others.
bool depthwise_applies(const Conv2dForward& call);
bool depthwise_applies(const Conv2dGradInput& call);
bool depthwise_applies(const Conv2dGradWeight& call);

int64_t depthwise_scratch_floats(const Conv2dForward& call);
int64_t depthwise_scratch_floats(const Conv2dGradInput& call, int64_t threads);
int64_t depthwise_scratch_floats(const Conv2dGradWeight& call, int64_t threads);

void depthwise_forward(const Conv2dPlan& plan, const Conv2dForward& call, float* scratch);
void depthwise_grad_input(const Conv2dPlan& plan, const Conv2dGradInput& call, float* scratch);
void depthwise_grad_weight(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch);

}  // namespace fastconv::cpu
