// SPDX-License-Identifier: MIT
// The activations in float32, and their derivatives as factors on a gradient, from the value `y`.
// NaN stays NaN. ReLU lets its gradient through, the leaky ReLU scales it, as torch has both.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "common/activation.h"

namespace fastconv::cuda {

__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// Replaces each of the values: one test of the activation for all of them.
template <int Count>
__device__ inline void activate(float (&x)[Count], Activation activation, float slope) {
  if (activation == Activation::kRelu) {
#pragma unroll
    for (int i = 0; i < Count; ++i) x[i] = x[i] <= 0.0f ? 0.0f : x[i];
  } else if (activation == Activation::kLeakyRelu) {
#pragma unroll
    for (int i = 0; i < Count; ++i) x[i] = x[i] <= 0.0f ? x[i] * slope : x[i];
  } else if (activation == Activation::kSigmoid) {
#pragma unroll
    for (int i = 0; i < Count; ++i) x[i] = sigmoid(x[i]);
  } else if (activation == Activation::kTanh) {
#pragma unroll
    for (int i = 0; i < Count; ++i) x[i] = tanhf(x[i]);
  }
}

// Precondition of kLeakyRelu: slope >= 0, for the sign of y to be the sign of x.
__device__ inline float activation_grad(float grad, float y, Activation activation, float slope) {
  switch (activation) {
    case Activation::kRelu:
      return y <= 0.0f ? 0.0f : grad;
    case Activation::kLeakyRelu:
      return y > 0.0f ? grad : grad * slope;
    case Activation::kSigmoid:
      return grad * ((1.0f - y) * y);
    case Activation::kTanh:
      return grad * (1.0f - y * y);
    case Activation::kNone:
      break;
  }
  return grad;
}

}  // namespace fastconv::cuda
