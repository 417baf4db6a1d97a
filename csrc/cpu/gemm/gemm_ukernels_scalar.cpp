// SPDX-License-Identifier: MIT
// GEMM tiles for scalar. Tiles are small enough for the sixteen SSE registers.
#include "cpu/simd/simd_scalar.h"

#include "cpu/gemm/gemm_ukernels.h"
#include "cpu/gemm/gemm_ukernels_impl.h"

namespace fastconv::cpu {

const GemmKernels kGemmKernelsScalar = {
    Simd::kLanes,
    gemm_family<4, 2, AForm::kPacked>(),
    gemm_family<3, 3, AForm::kPacked>(),
    gemm_family<4, 2, AForm::kPanel>(),
    gemm_family<8, 1, AForm::kPanel>(),
    place_family<4, 2>(),
    place_family<4, 1>(),
    gemm_family<4, 2, AForm::kRows>(),
    gemm_family<4, 1, AForm::kRows>(),
};

}  // namespace fastconv::cpu
