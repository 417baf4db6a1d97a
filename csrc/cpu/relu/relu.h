// SPDX-License-Identifier: MIT
// relu and its backward pass on raw pointers: float32 by vector kernels on the active ISA, float64
// by plain loops.
//
//   output[i] = input[i] > 0 ? input[i] : 0          a NaN stays
//   grad_input[i] = output[i] > 0 ? grad_output[i] : 0   behind a NaN, the gradient passes
//
// All arrays are dense, `count` values in the same order. Every result may be written in place of
// the input of the same index; otherwise no pointer may alias another. Memory traffic is all there
// is to it: what the operators gain is in where their results lie (bindings/outputs.h).
#pragma once

#include <cstdint>

namespace fastconv::cpu {

template <typename T>
struct ReluForward {
  int64_t count;
  const T* input;
  T* output;
};

template <typename T>
struct ReluBackward {
  int64_t count;
  const T* grad_output;
  const T* output;
  T* grad_input;
};

// Instantiated for float and double.
template <typename T>
void relu_forward(const ReluForward<T>& call);
template <typename T>
void relu_backward(const ReluBackward<T>& call);

}  // namespace fastconv::cpu
