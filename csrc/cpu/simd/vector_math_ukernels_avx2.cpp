// SPDX-License-Identifier: MIT
// exp, sigmoid and tanh of arrays for avx2.
#include "cpu/simd/simd_avx2.h"

#include "cpu/simd/vector_math_impl.h"

namespace fastconv::cpu {

const VectorMath kVectorMathAvx2 = kTable;

}  // namespace fastconv::cpu
