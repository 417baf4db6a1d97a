// SPDX-License-Identifier: MIT
// Pooling as plain loops: the definition, the float64 path, and the oracle of the C++ tests.
#pragma once

#include "cpu/pool2d/pool2d.h"

namespace fastconv::cpu {

// Contracts as in pool2d.h, but any strides. Instantiated for float and double; sums accumulate in
// T in row-major order.
template <typename T>
void max_pool2d_forward_reference(const MaxPool2dForward<T>& call);
template <typename T>
void max_pool2d_backward_reference(const MaxPool2dBackward<T>& call);
template <typename T>
void max_pool2d_gather_reference(const MaxPool2dGather<T>& call);
void max_pool2d_indices_reference(const MaxPool2dIndices& call);

template <typename T>
void avg_pool2d_forward_reference(const AvgPool2dForward<T>& call);
template <typename T>
void avg_pool2d_backward_reference(const AvgPool2dBackward<T>& call);

// scaled = grad_output / divisor for one plane, numbered image * channels + channel.
void divide_plane(const AvgPool2dBackward<float>& call, int64_t plane, float* scaled,
                  Strides4 scaled_strides);

}  // namespace fastconv::cpu
