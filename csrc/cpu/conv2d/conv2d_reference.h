// SPDX-License-Identifier: MIT
// conv2d as plain loops: the definition, the float64 path, and the oracle of the C++ tests.
#pragma once

#include "common/shapes.h"

namespace fastconv::cpu {

// Tensors as in conv2d.h, sums accumulate in T. Instantiated for float and double.
template <typename T>
void conv2d_forward_reference(const Conv2dShape& shape, const T* input, Strides4 input_strides,
                              const T* weight, const T* bias, T* output, Strides4 output_strides);

template <typename T>
void conv2d_grad_input_reference(const Conv2dShape& shape, const T* grad_output,
                                 Strides4 grad_output_strides, const T* weight, T* grad_input,
                                 Strides4 grad_input_strides);

// grad_bias may be nullptr.
template <typename T>
void conv2d_grad_weight_reference(const Conv2dShape& shape, const T* grad_output,
                                  Strides4 grad_output_strides, const T* input,
                                  Strides4 input_strides, T* grad_weight, T* grad_bias);

}  // namespace fastconv::cpu
