// SPDX-License-Identifier: MIT
// Activations as the schemas name them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "common/activation.h"

namespace fastconv::bindings {

// Throws ValueError "<op>: expected activation one of ..., got ..." for any other name.
Activation parse_activation(const char* op, std::string_view name);

std::string_view activation_name(Activation activation);

// x after one activation, by torch's operators.
at::Tensor activate(const at::Tensor& x, Activation activation, double negative_slope);

// The same, overwriting x where that is possible: a leaky ReLU of a slope below zero makes a new
// tensor, because its backward pass cannot tell from the result what the input was.
at::Tensor activate_in_place(at::Tensor x, Activation activation, double negative_slope);

}  // namespace fastconv::bindings
