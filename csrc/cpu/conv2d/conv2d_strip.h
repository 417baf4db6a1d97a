// SPDX-License-Identifier: MIT
// The two algorithms of conv2d_gather.h that read a copied strip of the input in place. Only
// conv2d_gather.cpp calls them.
#pragma once

#include "cpu/conv2d/conv2d_gather.h"

namespace fastconv::cpu {

// Output channels of one block of packed weights for `plan`.
int64_t strip_block_rows(const GatherPlan& plan, int64_t out_channels);

// Fills in the blocking (strip_rows, tile_columns, slots) of `plan`.
void plan_strip(const GatherConv& conv, int64_t threads, GatherPlan* plan);

int64_t strip_slot_floats(const GatherPlan& plan, const GatherConv& conv);

// `weights` are packed by conv2d_gather.cpp; `slots` is plan.slots * strip_slot_floats memory.
void run_strip(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* slots);

}  // namespace fastconv::cpu
