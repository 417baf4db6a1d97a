// SPDX-License-Identifier: MIT
// The algorithms of the weight gradient, all products over pixels:
//
//   grad_weight[k, o] = sum_p input[k, p] * grad_output[p, o]      k = (input channel, tap)
//
//   panel   the im2col strip of the forward pass, whose rows are read along the pixels; vectors run
//           along the output channels, for which grad_output is transposed; any shape. 1 x 1
//           kernels read images of long rows of pixels in place and need no strip
//   direct  the same product, but the taps read a padded copy of the input in place: kernel widths
//           3, 5 and 7 without column stride, where packing a panel would cost as much as the rest
//   rows    the taps read whole pixels, whose channels lie side by side in channels_last and are
//           transposed block by block in other layouts; no panel, zeros are never multiplied
//   winograd  3 x 3 kernels without stride or dilation: 2.25 times fewer multiplications;
//             winograd_4x4: 3.1 times fewer, on tiles of 4 x 4 outputs
//   dot     a padded copy as for direct, but vectors run along the pixels and nothing is
//           transposed: for few channels on maps that fill the vectors; no column stride, any
//           kernel
//   image_vectors  the tiles of dot on images that are transposed to be the lanes of vectors: for
//           few channels, no column stride, any kernel and width
//
// Only conv2d_grad_weight.cpp calls these.
#pragma once

#include "cpu/conv2d/conv2d.h"

namespace fastconv::cpu {

// Whether panel needs no strip.
bool weight_panel_in_place(const Conv2dGradWeight& call, Isa isa);
int64_t weight_panel_scratch_floats(const Conv2dGradWeight& call, Isa isa, int64_t threads);
void grad_weight_panel(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch);

int64_t weight_rows_scratch_floats(const Conv2dGradWeight& call, Isa isa, int64_t threads);
void grad_weight_rows(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch);

// Precondition: weight_winograd_applies(shape).
bool weight_winograd_applies(const Conv2dShape& shape);
// `tile` is 2 or 4, the outputs along one side of a tile.
int64_t weight_winograd_scratch_floats(const Conv2dGradWeight& call, int64_t tile, Isa isa,
                                       int64_t threads);
void grad_weight_winograd(const Conv2dPlan& plan, const Conv2dGradWeight& call, int64_t tile,
                          float* scratch);

enum class WeightVectors { kChannels, kPixels };  // direct, dot

// Preconditions: weight_direct_applies(shape) for kChannels, weight_dot_applies(call) for kPixels.
bool weight_direct_applies(const Conv2dShape& shape);
bool weight_dot_applies(const Conv2dGradWeight& call);
int64_t weight_direct_scratch_floats(const Conv2dShape& shape, WeightVectors vectors, Isa isa,
                                     int64_t threads);
void grad_weight_direct(const Conv2dPlan& plan, const Conv2dGradWeight& call, WeightVectors vectors,
                        float* scratch);

// Precondition: weight_images_applies(call).
bool weight_images_applies(const Conv2dGradWeight& call);
double weight_images_fill(const Conv2dShape& shape, Isa isa);  // share of lanes that hold images
int64_t weight_images_scratch_floats(const Conv2dShape& shape, Isa isa, int64_t threads);
void grad_weight_images(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch);

}  // namespace fastconv::cpu
