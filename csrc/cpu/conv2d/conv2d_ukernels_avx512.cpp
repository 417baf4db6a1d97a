// SPDX-License-Identifier: MIT
// conv2d data movement for avx512.
#include "cpu/simd/simd_avx512.h"

#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_ukernels_impl.h"

namespace fastconv::cpu {

const Conv2dKernels kConv2dKernelsAvx512 = {
    direct_family<14, 2>(), direct_family<6, 4>(), &pack_panel, &copy_block};

}  // namespace fastconv::cpu
