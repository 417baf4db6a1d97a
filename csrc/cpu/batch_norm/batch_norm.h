// SPDX-License-Identifier: MIT
// Batch normalisation on raw pointers, with an optional relu behind it: float32 by vector kernels
// on the active ISA, float64 by the plain loops of batch_norm_reference.h.
//
//   output = relu?((input - mean) * invstd * weight + bias), per channel
//   invstd = 1 / sqrt(var + eps), var the biased variance
//
// A mean is two numbers per channel, [2, C]: its rounding to T, and what that left. Where the mean
// is much larger than the spread, the first alone would shift every output by more than they
// differ. Tensors are dense [N, C, P], P pixels, or, with channels_last, [N, P, C]; per-channel
// vectors are [C]. weight may be nullptr (ones), and so may bias (zeros). No pointer may alias
// another; outputs are written completely. Sums run over fixed blocks, so that results do not
// depend on the number of threads; blocks are combined in double precision around a value of the
// channel, which keeps the variance right where the mean is much larger. Squares of deviations must
// fit a float.
#pragma once

#include <cstdint>

#include "common/shapes.h"

namespace fastconv::cpu {

template <typename T>
struct BatchNormTraining {
  BatchNormShape shape;
  bool channels_last;
  bool relu;
  double eps;
  const T* input;
  const T* weight;
  const T* bias;
  T* output;
  T* mean;    // [2, C], written
  T* invstd;  // [C], written
  double momentum;
  T* running_mean;  // becomes (1 - momentum) * running_mean + momentum * mean; or nullptr
  T* running_var;   // as running_mean, with the unbiased variance; or nullptr
};

template <typename T>
struct BatchNormInference {
  BatchNormShape shape;
  bool channels_last;
  bool relu;
  double eps;
  const T* input;
  const T* weight;
  const T* bias;
  const T* mean;  // [C]
  const T* var;
  T* output;
};

template <typename T>
struct BatchNormBackward {
  BatchNormShape shape;
  bool channels_last;
  bool relu;      // outputs are computed again to see which of them were zero
  bool training;  // whether mean and invstd came from the input
  const T* grad_output;
  const T* input;
  const T* weight;
  const T* bias;
  const T* mean;  // [2, C]
  const T* invstd;
  T* grad_input;   // or nullptr
  T* grad_weight;  // or nullptr
  T* grad_bias;    // or nullptr
};

// Floats of scratch for any of the three calls; those on doubles need none.
int64_t batch_norm_scratch(const BatchNormShape& shape, bool channels_last);

// Instantiated for float and double. Preconditions: no size is zero; training: at least two values
// per channel.
template <typename T>
void batch_norm_training(const BatchNormTraining<T>& call, float* scratch);
template <typename T>
void batch_norm_inference(const BatchNormInference<T>& call, float* scratch);
template <typename T>
void batch_norm_backward(const BatchNormBackward<T>& call, float* scratch);

}  // namespace fastconv::cpu
