// SPDX-License-Identifier: MIT
// The one parser and checker of mlp's arguments, and the choice between the fused kernels and the
// composed operators.
#pragma once

#include "bindings/activation_args.h"
#include "bindings/ops.h"

namespace fastconv::bindings {

struct MlpOptions {
  Activation activation;
  double negative_slope;
};

// Throws unless there are as many biases as weights, at least one, and every weight is
// [out, in] with `in` what the layer before it puts out.
void check_mlp_args(const Tensor& input, at::TensorList weights, at::TensorList biases);

// True when the fused float32 kernels serve the call. Reads sizes other than the batch as plain
// integers. Precondition: check_mlp_args passed.
bool mlp_fuses(const Tensor& input, at::TensorList weights, at::TensorList biases,
               const MlpOptions& options);

// linear and activation one after the other, differentiable, by torch's operators.
Tensor composed_mlp(const Tensor& input, at::TensorList weights, at::TensorList biases,
                    const MlpOptions& options);

}  // namespace fastconv::bindings
