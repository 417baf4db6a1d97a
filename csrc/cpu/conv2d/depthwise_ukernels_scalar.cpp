// SPDX-License-Identifier: MIT
// Depthwise convolution for scalar.
#include "cpu/simd/simd_scalar.h"

#include "cpu/conv2d/depthwise_ukernels.h"
#include "cpu/conv2d/depthwise_ukernels_impl.h"

namespace fastconv::cpu {

const DepthwiseKernels kDepthwiseKernelsScalar = {&run_plane, &add_plane_products, &interleave,
                                                  &run_image, &add_image_products};

}  // namespace fastconv::cpu
