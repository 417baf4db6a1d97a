// SPDX-License-Identifier: MIT
// Depthwise convolution for avx512.
#include "cpu/simd/simd_avx512.h"

#include "cpu/conv2d/depthwise_ukernels.h"
#include "cpu/conv2d/depthwise_ukernels_impl.h"

namespace fastconv::cpu {

const DepthwiseKernels kDepthwiseKernelsAvx512 = {&run_plane, &add_plane_products, &interleave,
                                                  &run_image, &add_image_products};

}  // namespace fastconv::cpu
