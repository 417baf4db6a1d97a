// SPDX-License-Identifier: MIT
// The two algorithms of the weight gradient, both products over pixels on transposed tensors:
//
//   grad_weight[k, o] = sum_p input[k, p] * grad_output[p, o]      k = (input channel, tap)
//
//   panel   the im2col strip of the forward pass, whose rows are read along the pixels; any shape
//   direct  the taps read a padded copy of the input in place; kernel widths 3, 5 and 7 without
//           column stride, where packing the panel would cost as much as multiplying it
//
// grad_output is transposed once per block of output channels in both. Only
// conv2d_grad_weight.cpp calls these.
#pragma once

#include "cpu/conv2d/conv2d.h"

namespace fastconv::cpu {

int64_t weight_panel_scratch_floats(const Conv2dShape& shape, Isa isa, int64_t threads);
void grad_weight_panel(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch);

// Precondition of both: weight_direct_applies(shape).
bool weight_direct_applies(const Conv2dShape& shape);
int64_t weight_direct_scratch_floats(const Conv2dShape& shape, Isa isa, int64_t threads);
void grad_weight_direct(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch);

}  // namespace fastconv::cpu
