// SPDX-License-Identifier: MIT
// Adam as the paper and torch's loop over tensors write it: nothing folded, one number at a time.
// The oracle of the C++ tests.
#pragma once

#include <cstdint>

#include "common/adam_math.h"

namespace fastconv::cpu {

// `max_exp_avg_sq` may be nullptr. Instantiated for float and double.
template <typename T>
struct AdamReference {
  T* param;
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  T* max_exp_avg_sq;
  int64_t size;
};

// The gradients are multiplied by `factor` first.
template <typename T>
void adam_reference(const AdamReference<T>& arrays, const AdamStepScalars& scalars, double factor);

}  // namespace fastconv::cpu
