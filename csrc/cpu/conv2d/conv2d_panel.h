// SPDX-License-Identifier: MIT
// The panel algorithm of conv2d_gather.h. Only conv2d_gather.cpp calls it.
#pragma once

#include "cpu/conv2d/conv2d_gather.h"

namespace fastconv::cpu {

// Whether the pixels that the only tap reads are numbered as those of the grid, without gaps.
bool panel_reads_flat_images(const GatherConv& conv);

// Fills in the blocking (block_tiles, slots) of `plan`.
void plan_panel(const GatherConv& conv, int64_t threads, GatherPlan* plan);

int64_t panel_slot_floats(const GatherPlan& plan, const GatherConv& conv);

// `weights` are packed by conv2d_gather.cpp; `slots` is plan.slots * panel_slot_floats memory.
void run_panel(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* slots);

}  // namespace fastconv::cpu
