// SPDX-License-Identifier: MIT
// The Winograd algorithm of conv2d_gather.h. Only conv2d_gather.cpp calls it.
#pragma once

#include "cpu/conv2d/conv2d_gather.h"

namespace fastconv::cpu {

// 3 x 3 kernels without stride or dilation, whichever way the taps run.
bool winograd_applies(const GatherConv& conv);

// Fills in the blocking (block_images, strip_rows, slots) of `plan`.
void plan_winograd(const GatherConv& conv, int64_t threads, GatherPlan* plan);

int64_t winograd_scratch_floats(const GatherPlan& plan, const GatherConv& conv);

void run_winograd(const GatherPlan& plan, const GatherConv& conv, float* scratch);

}  // namespace fastconv::cpu
