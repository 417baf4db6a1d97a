// SPDX-License-Identifier: MIT
// The kernel tables that the gemm_ukernels_<isa>.cpp files define. Only gemm.cpp reads them.
#pragma once

#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {

extern const GemmKernels kGemmKernelsScalar;
extern const GemmKernels kGemmKernelsAvx2;
extern const GemmKernels kGemmKernelsAvx512;

}  // namespace fastconv::cpu
