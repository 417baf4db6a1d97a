// SPDX-License-Identifier: MIT
// Winograd transforms for scalar.
#include "cpu/simd/simd_scalar.h"

#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/conv2d/winograd_ukernels_impl.h"

namespace fastconv::cpu {

const WinogradKernels kWinogradKernelsScalar = {&transform_input, &transform_weights,
                                                &transform_output, &transform_grad_output,
                                                &transform_weight_sums};

}  // namespace fastconv::cpu
