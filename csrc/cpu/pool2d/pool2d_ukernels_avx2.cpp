// SPDX-License-Identifier: MIT
// Pooling kernels for avx2.
// clang-format off: the templates need the instruction set's Simd before them.
#include "cpu/simd/simd_avx2.h"
// clang-format on

#include "cpu/pool2d/pool2d_ukernels.h"
#include "cpu/pool2d/pool2d_ukernels_impl.h"

namespace fastconv::cpu {

const Pool2dKernels kPool2dKernelsAvx2 = kPool2dKernels;

}  // namespace fastconv::cpu
