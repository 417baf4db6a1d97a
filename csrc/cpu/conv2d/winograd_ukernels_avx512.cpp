// SPDX-License-Identifier: MIT
// Winograd transforms for avx512.
#include "cpu/simd/simd_avx512.h"

#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/conv2d/winograd_ukernels_impl.h"

namespace fastconv::cpu {

const WinogradKernels kWinogradKernelsAvx512 = {&transform_input, &transform_weights,
                                                &transform_output, &transform_grad_output,
                                                &transform_weight_sums};

}  // namespace fastconv::cpu
