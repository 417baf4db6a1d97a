// SPDX-License-Identifier: MIT
// Batch normalisation kernels for avx512.
// clang-format off: the templates need the instruction set's Simd before them.
#include "cpu/simd/simd_avx512.h"
// clang-format on

#include "cpu/batch_norm/batch_norm_ukernels.h"
#include "cpu/batch_norm/batch_norm_ukernels_impl.h"

namespace fastconv::cpu {

const BatchNormKernels kBatchNormKernelsAvx512 = kBatchNormKernels;

}  // namespace fastconv::cpu
