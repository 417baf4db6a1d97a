// SPDX-License-Identifier: MIT
// The direct algorithm of conv2d_gather.h. Only conv2d_gather.cpp calls it.
#pragma once

#include "cpu/conv2d/conv2d_gather.h"

namespace fastconv::cpu {

// Fills in the blocking (strip_rows, slots) of `plan`.
void plan_direct(const GatherConv& conv, int64_t threads, GatherPlan* plan);

int64_t direct_slot_floats(const GatherPlan& plan, const GatherConv& conv);

// `weights` are packed by conv2d_gather.cpp; `slots` is plan.slots * direct_slot_floats memory.
void run_direct(const GatherPlan& plan, const GatherConv& conv, const float* weights,
                float* slots);

}  // namespace fastconv::cpu
