// SPDX-License-Identifier: MIT
#include "bindings/batch_norm_args.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <utility>

namespace fastconv::bindings {
namespace {

bool is_given(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined();
}

}  // namespace

void check_batch_norm_args(const Tensor& input, const BatchNormTensors& tensors, bool training) {
  TORCH_CHECK_VALUE(input.dim() >= 2, "batch_norm: expected input of shape [N, C, ...], got ",
                    input.sym_sizes());
  const c10::SymInt channels = input.sym_size(1);
  for (const auto& [name, tensor] :
       {std::pair{"weight", &tensors.weight}, std::pair{"bias", &tensors.bias},
        std::pair{"running_mean", &tensors.running_mean},
        std::pair{"running_var", &tensors.running_var}})
    TORCH_CHECK_VALUE(
        !is_given(*tensor) || ((*tensor)->dim() == 1 && (*tensor)->sym_size(0) == channels),
        "batch_norm: expected ", name, " of shape [", channels, "], got ", (*tensor)->sym_sizes());
  if (!training) return;
  c10::SymInt values = input.sym_size(0);
  for (int64_t d = 2; d < input.dim(); ++d) values = values * input.sym_size(d);
  TORCH_CHECK_VALUE(values != 1,
                    "batch_norm: expected more than 1 value per channel when training, got input ",
                    "of shape ", input.sym_sizes());
}

void check_batch_norm_call(const Tensor& input, const BatchNormTensors& tensors, bool training,
                           double eps) {
  check_batch_norm_args(input, tensors, training);
  TORCH_CHECK_VALUE(is_given(tensors.running_mean) == is_given(tensors.running_var),
                    "batch_norm: expected running_mean and running_var, or neither, got one");
  for (const auto& [name, tensor] : {std::pair{"running_mean", &tensors.running_mean},
                                     std::pair{"running_var", &tensors.running_var}})
    TORCH_CHECK(!is_given(*tensor) || !(*tensor)->requires_grad(), "batch_norm: expected ", name,
                " that requires no gradient: it is not differentiable");
  TORCH_CHECK_VALUE(training ? eps > 0 : eps >= 0, "batch_norm: expected eps ",
                    training ? "above 0 when training" : "of at least 0", ", got ", eps);
}

bool batch_norm_on_kernels(const Tensor& input, const BatchNormTensors& tensors) {
  const auto dtype = input.scalar_type();
  if (!input.is_cpu() || runs_on_torch_kernels(dtype)) return false;
  for (const OptionalTensor* tensor :
       {&tensors.weight, &tensors.bias, &tensors.running_mean, &tensors.running_var})
    if (is_given(*tensor) && ((*tensor)->scalar_type() != dtype || !(*tensor)->is_cpu()))
      return false;
  return true;
}

Tensor torch_batch_norm(const Tensor& input, const BatchNormTensors& tensors, bool training,
                        const BatchNormOptions& options) {
  Tensor output = at::batch_norm(input, tensors.weight, tensors.bias, tensors.running_mean,
                                 tensors.running_var, training, options.momentum, options.eps,
                                 /*cudnn_enabled=*/true);
  return options.relu ? at::relu(output) : output;
}

BatchNormShape batch_norm_shape(const Tensor& input) {
  BatchNormShape shape{input.size(0), input.size(1), 1};
  for (int64_t d = 2; d < input.dim(); ++d) shape.pixels *= input.size(d);
  return shape;
}

}  // namespace fastconv::bindings
