// SPDX-License-Identifier: MIT
// Pooling kernels for scalar.
#include "cpu/pool2d/pool2d_ukernels.h"
#include "cpu/pool2d/pool2d_ukernels_impl.h"
#include "cpu/simd/simd_scalar.h"

namespace fastconv::cpu {

const Pool2dKernels kPool2dKernelsScalar = kPool2dKernels;

}  // namespace fastconv::cpu
