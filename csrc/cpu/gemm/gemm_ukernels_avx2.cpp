// SPDX-License-Identifier: MIT
// GEMM tiles for avx2. 6x16 and 4x24 keep twelve of sixteen registers as accumulators; 12x8 serves
// one-vector outputs.
#include "cpu/simd/simd_avx2.h"

#include "cpu/gemm/gemm_ukernels.h"
#include "cpu/gemm/gemm_ukernels_impl.h"

namespace fastconv::cpu {

const GemmKernels kGemmKernelsAvx2 = {
    Simd::kLanes,
    gemm_family<6, 2, AForm::kPacked>(),
    gemm_family<4, 3, AForm::kPacked>(),
    gemm_family<6, 2, AForm::kPanel>(),
    gemm_family<12, 1, AForm::kPanel>(),
    place_family<6, 2>(),
    place_family<12, 1>(),
    gemm_family<6, 2, AForm::kRows>(),
    gemm_family<12, 1, AForm::kRows>(),
};

}  // namespace fastconv::cpu
