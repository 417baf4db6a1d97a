// SPDX-License-Identifier: MIT
// The fully connected layers' kernels for scalar.
#include "cpu/simd/simd_scalar.h"

#include "cpu/simd/simd_activations.h"

#include "cpu/mlp/mlp_ukernels.h"
#include "cpu/mlp/mlp_ukernels_impl.h"

namespace fastconv::cpu {

const MlpKernels kMlpKernelsScalar = make_kernels();

}  // namespace fastconv::cpu
