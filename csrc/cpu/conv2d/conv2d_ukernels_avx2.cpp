// SPDX-License-Identifier: MIT
// conv2d data movement for avx2.
#include "cpu/simd/simd_avx2.h"

#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_ukernels_impl.h"

namespace fastconv::cpu {

const Conv2dKernels kConv2dKernelsAvx2 = {
    direct_family<6, 2>(), direct_family<4, 3>(), &pack_panel, &copy_block};

}  // namespace fastconv::cpu
