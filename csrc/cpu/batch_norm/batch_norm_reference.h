// SPDX-License-Identifier: MIT
// Batch normalisation as plain loops: the definition, the float64 path, and the oracle of the C++
// tests.
#pragma once

#include "cpu/batch_norm/batch_norm.h"

namespace fastconv::cpu {

// Contracts as in batch_norm.h. Instantiated for float and double; sums are double.
template <typename T>
void batch_norm_training_reference(const BatchNormTraining<T>& call);
template <typename T>
void batch_norm_inference_reference(const BatchNormInference<T>& call);
template <typename T>
void batch_norm_backward_reference(const BatchNormBackward<T>& call);

}  // namespace fastconv::cpu
