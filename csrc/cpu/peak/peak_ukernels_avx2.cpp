// SPDX-License-Identifier: MIT
#include "cpu/simd/simd_avx2.h"

#include "cpu/peak/peak_ukernels.h"
#include "cpu/peak/peak_ukernels_impl.h"

namespace fastconv::cpu {

const PeakKernel kPeakKernelAvx2 = peak_kernel<12>();

}  // namespace fastconv::cpu
