// SPDX-License-Identifier: MIT
// conv_block2d's pooling strips and sparse gradients for avx2.
#include "cpu/simd/simd_avx2.h"

#include "cpu/simd/simd_activations.h"

#include "cpu/conv_block2d/conv_block2d_ukernels.h"
#include "cpu/conv_block2d/conv_block2d_ukernels_impl.h"

namespace fastconv::cpu {

const ConvBlock2dKernels kConvBlock2dKernelsAvx2 = make_kernels();

}  // namespace fastconv::cpu
