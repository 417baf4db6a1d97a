// SPDX-License-Identifier: MIT
// relu for scalar.
// clang-format off: the templates need the instruction set's Simd before them.
#include "cpu/simd/simd_scalar.h"
// clang-format on

#include "cpu/relu/relu_ukernels.h"
#include "cpu/relu/relu_ukernels_impl.h"

namespace fastconv::cpu {

const ReluKernels kReluKernelsScalar = kReluKernels;

}  // namespace fastconv::cpu
