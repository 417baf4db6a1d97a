// SPDX-License-Identifier: MIT
// exp, sigmoid and tanh of arrays, for every ISA: the functions of simd_math_impl.h behind a table,
// so that their error can be measured. y may be x.
#pragma once

#include <cstdint>

namespace fastconv::cpu {

struct VectorMath {
  void (*exp)(const float* x, float* y, int64_t size);
  void (*sigmoid)(const float* x, float* y, int64_t size);
  void (*tanh)(const float* x, float* y, int64_t size);
};

extern const VectorMath kVectorMathScalar;
extern const VectorMath kVectorMathAvx2;
extern const VectorMath kVectorMathAvx512;

}  // namespace fastconv::cpu
