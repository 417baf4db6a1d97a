// SPDX-License-Identifier: MIT
#include "cpu/gemm/gemm.h"

#include "cpu/gemm/gemm_ukernels.h"

namespace fastconv::cpu {

const GemmKernels& gemm_kernels(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return kGemmKernelsAvx512;
    case Isa::kAvx2:
      return kGemmKernelsAvx2;
    case Isa::kScalar:
      break;
  }
  return kGemmKernelsScalar;
}

}  // namespace fastconv::cpu
