// SPDX-License-Identifier: MIT
// The fully connected layers' kernels for avx2.
#include "cpu/simd/simd_avx2.h"

#include "cpu/simd/simd_activations.h"

#include "cpu/mlp/mlp_ukernels.h"
#include "cpu/mlp/mlp_ukernels_impl.h"

namespace fastconv::cpu {

const MlpKernels kMlpKernelsAvx2 = make_kernels();

}  // namespace fastconv::cpu
