// SPDX-License-Identifier: MIT
// The one checker of batch normalisation's arguments, the choice between fastconv's kernels and
// torch's operator, and the composed form.
#pragma once

#include "bindings/ops.h"
#include "common/shapes.h"

namespace fastconv::bindings {

// Throws ValueError unless the input has channels and the vectors that are given one value for each
// of them; in training, unless a channel has more than one value. Symbolic sizes are welcome.
void check_batch_norm_args(const Tensor& input, const BatchNormTensors& tensors, bool training);

// The same for a call of a public operator, and that statistics come in pairs and need no gradient,
// and that eps can be divided by.
void check_batch_norm_call(const Tensor& input, const BatchNormTensors& tensors, bool training,
                           double eps);

// True when all tensors are on the CPU and of one dtype that the kernels serve.
bool batch_norm_on_kernels(const Tensor& input, const BatchNormTensors& tensors);

// torch's batch_norm, then relu if wanted: differentiable, updates running statistics in training.
Tensor torch_batch_norm(const Tensor& input, const BatchNormTensors& tensors, bool training,
                        const BatchNormOptions& options);

BatchNormShape batch_norm_shape(const Tensor& input);

// For a relu in place on `output`, which is no view: true when fastconv's batch normalisation made
// it and nothing else refers to its node, whose backward pass then does the relu's as well. That
// nothing refers to it means that nobody has computed with the values from before the relu.
bool joins_batch_norm(const Tensor& output);

}  // namespace fastconv::bindings
