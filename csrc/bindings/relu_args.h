// SPDX-License-Identifier: MIT
// Which tensors relu's kernels serve, and its operators as typed calls.
#pragma once

#include "bindings/ops.h"

namespace fastconv::bindings {

// True for float32 and float64 on the CPU whose values lie dense in memory, in the order of a
// memory format.
bool relu_on_kernels(const Tensor& input);

Tensor call_relu(const Tensor& input);

// grad_output where `output` is above zero (or NaN), else zero; laid out like `output`.
Tensor call_relu_backward(const Tensor& grad_output, const Tensor& output);

}  // namespace fastconv::bindings
