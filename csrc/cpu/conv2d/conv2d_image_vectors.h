// SPDX-License-Identifier: MIT
// The algorithm image_vectors of conv2d_gather.h. Only conv2d_gather.cpp calls it.
#pragma once

#include "cpu/conv2d/conv2d_gather.h"

namespace fastconv::cpu {

bool image_vectors_applies(const GatherConv& conv);

// Share of the lanes that hold images.
double image_vectors_fill(const GatherConv& conv, int64_t lanes);

// Fills in the blocking (cuts, strip_rows, slots) of `plan`.
void plan_image_vectors(const GatherConv& conv, int64_t threads, GatherPlan* plan);

int64_t image_vectors_slot_floats(const GatherPlan& plan, const GatherConv& conv);

// `weights` are packed by conv2d_gather.cpp in the order (kernel row, channel, kernel column);
// `slots` is plan.slots * image_vectors_slot_floats memory.
void run_image_vectors(const GatherPlan& plan, const GatherConv& conv, const float* weights,
                       float* slots);

}  // namespace fastconv::cpu
