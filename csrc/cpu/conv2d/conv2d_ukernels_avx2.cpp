// SPDX-License-Identifier: MIT
// conv2d data movement for avx2.
#include "cpu/simd/simd_avx2.h"

#include "cpu/conv2d/conv2d_tiles_impl.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_ukernels_impl.h"
#include "cpu/conv2d/conv2d_weight_tiles_impl.h"

namespace fastconv::cpu {

const Conv2dKernels kConv2dKernelsAvx2 = {
    direct_family<6, 2>(),
    direct_family<4, 3>(),
    {channel_family<5, 2, 1>(), channel_family<7, 1, 1>(), channel_family<8, 1, 1>(),
     channel_family<13, 1, 1>()},
    {channel_family<5, 1, 2>(), channel_family<7, 1, 2>(), channel_family<8, 1, 2>(),
     channel_family<13, 1, 2>()},
    {weight_family<3, 4, 1>(), weight_family<3, 2, 2>(), weight_family<5, 2, 1>(),
     weight_family<5, 1, 2>(), weight_family<7, 1, 1>(), weight_family<7, 1, 2>()},
    dot_family<4, 4, 9>(),
    &add_lanes,
    &pack_panel,
    &add_shifted,
    &copy_pieces,
    &copy_block,
    &pack_columns,
    &unpack_columns,
};

}  // namespace fastconv::cpu
