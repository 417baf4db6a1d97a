// SPDX-License-Identifier: MIT
// The options of one parameter group, and the scalars of a step that follow from them.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/adam/adam.h"

namespace fastconv::bindings {

// What the parameter groups of torch.optim hold. A rate that torch got as a tensor is kept as one:
// torch then computes with it in that tensor's precision. The plain number beside it is ignored.
struct AdamOptions {
  double lr = 0.0;
  double beta1 = 0.0;
  double beta2 = 0.0;
  double eps = 0.0;
  double weight_decay = 0.0;
  bool amsgrad = false;
  bool maximize = false;
  bool decoupled_weight_decay = false;
  at::Tensor lr_tensor;
  at::Tensor beta1_tensor;
  at::Tensor beta2_tensor;

  bool has_tensors() const {
    return lr_tensor.defined() || beta1_tensor.defined() || beta2_tensor.defined();
  }
};

// `step` counts from 1.
AdamStepScalars adam_scalars(const AdamOptions& options, double step, cpu::AdamType type);

}  // namespace fastconv::bindings
