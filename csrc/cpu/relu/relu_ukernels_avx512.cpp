// SPDX-License-Identifier: MIT
// relu for avx512.
// clang-format off: the templates need the instruction set's Simd before them.
#include "cpu/simd/simd_avx512.h"
// clang-format on

#include "cpu/relu/relu_ukernels.h"
#include "cpu/relu/relu_ukernels_impl.h"

namespace fastconv::cpu {

const ReluKernels kReluKernelsAvx512 = kReluKernels;

}  // namespace fastconv::cpu
