// SPDX-License-Identifier: MIT
// The algorithm of conv2d_gather.h that multiplies first and sums over the taps afterwards. Only
// conv2d_gather.cpp calls it.
#pragma once

#include "cpu/conv2d/conv2d_gather.h"

namespace fastconv::cpu {

// A gather without steps.
bool shifted_applies(const GatherConv& conv);

// Whether the input is read in place.
bool shifted_in_place(const GatherConv& conv);

// Fills in the blocking (strip_rows, block_rows, slots) of `plan`. Precondition of all:
// shifted_applies(conv).
void plan_shifted(const GatherConv& conv, int64_t threads, GatherPlan* plan);

// Input pixels multiplied per grid point: below 1 where the grid is larger than the input, above
// where strips overlap.
double shifted_work(const GatherConv& conv);

int64_t shifted_scratch_floats(const GatherPlan& plan, const GatherConv& conv);

void run_shifted(const GatherPlan& plan, const GatherConv& conv, float* scratch);

}  // namespace fastconv::cpu
