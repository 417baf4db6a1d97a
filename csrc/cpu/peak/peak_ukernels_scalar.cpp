// SPDX-License-Identifier: MIT
#include "cpu/simd/simd_scalar.h"

#include "cpu/peak/peak_ukernels.h"
#include "cpu/peak/peak_ukernels_impl.h"

namespace fastconv::cpu {

const PeakKernel kPeakKernelScalar = peak_kernel<8>();

}  // namespace fastconv::cpu
