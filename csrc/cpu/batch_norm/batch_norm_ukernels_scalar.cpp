// SPDX-License-Identifier: MIT
// Batch normalisation kernels for scalar.
// clang-format off: the templates need the instruction set's Simd before them.
#include "cpu/simd/simd_scalar.h"
// clang-format on

#include "cpu/batch_norm/batch_norm_ukernels.h"
#include "cpu/batch_norm/batch_norm_ukernels_impl.h"

namespace fastconv::cpu {

const BatchNormKernels kBatchNormKernelsScalar = kBatchNormKernels;

}  // namespace fastconv::cpu
