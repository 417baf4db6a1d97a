// SPDX-License-Identifier: MIT
// The rows algorithm of conv2d_gather.h. Only conv2d_gather.cpp calls it.
#pragma once

#include "cpu/conv2d/conv2d_gather.h"

namespace fastconv::cpu {

// Fills in the blocking (block_images, strip_rows, slots) of `plan`.
void plan_rows(const GatherConv& conv, int64_t threads, GatherPlan* plan);

int64_t rows_scratch_floats(const GatherPlan& plan, const GatherConv& conv);

void run_rows(const GatherPlan& plan, const GatherConv& conv, float* scratch);

}  // namespace fastconv::cpu
