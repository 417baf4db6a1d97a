// SPDX-License-Identifier: MIT
// exp, sigmoid and tanh of arrays for scalar.
#include "cpu/simd/simd_scalar.h"

#include "cpu/simd/vector_math_impl.h"

namespace fastconv::cpu {

const VectorMath kVectorMathScalar = kTable;

}  // namespace fastconv::cpu
