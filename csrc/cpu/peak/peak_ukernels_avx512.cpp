// SPDX-License-Identifier: MIT
#include "cpu/simd/simd_avx512.h"

#include "cpu/peak/peak_ukernels.h"
#include "cpu/peak/peak_ukernels_impl.h"

namespace fastconv::cpu {

const PeakKernel kPeakKernelAvx512 = peak_kernel<24>();

}  // namespace fastconv::cpu
