// SPDX-License-Identifier: MIT
// exp, sigmoid and tanh of arrays for avx512.
#include "cpu/simd/simd_avx512.h"

#include "cpu/simd/vector_math_impl.h"

namespace fastconv::cpu {

const VectorMath kVectorMathAvx512 = kTable;

}  // namespace fastconv::cpu
