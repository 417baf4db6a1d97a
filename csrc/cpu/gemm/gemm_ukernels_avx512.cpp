// SPDX-License-Identifier: MIT
// GEMM tiles for avx512. 14x32 and 6x64 keep 28 and 24 of 32 registers as accumulators and need 1.1
// and 0.8 loads per cycle of two; 28x16 serves one-vector outputs and reads A in pairs, or it would
// need 2.1.
#include "cpu/simd/simd_avx512.h"

#include "cpu/gemm/gemm_ukernels.h"
#include "cpu/gemm/gemm_ukernels_impl.h"

namespace fastconv::cpu {

const GemmKernels kGemmKernelsAvx512 = {
    Simd::kLanes,
    gemm_family<14, 2, AForm::kPacked>(),
    gemm_family<6, 4, AForm::kPacked>(),
    gemm_family<14, 2, AForm::kPanel>(),
    gemm_family<28, 1, AForm::kPanel>(),
    place_family<14, 2>(),
    place_family<14, 1>(),
    gemm_family<6, 4, AForm::kRows>(),
    gemm_family<12, 2, AForm::kRows>(),
};

}  // namespace fastconv::cpu
