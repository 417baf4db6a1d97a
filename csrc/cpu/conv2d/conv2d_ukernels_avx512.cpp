// SPDX-License-Identifier: MIT
// conv2d data movement for avx512.
#include "cpu/simd/simd_avx512.h"

#include "cpu/conv2d/conv2d_tiles_impl.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_ukernels_impl.h"
#include "cpu/conv2d/conv2d_weight_tiles_impl.h"

namespace fastconv::cpu {

const Conv2dKernels kConv2dKernelsAvx512 = {
    direct_family<14, 2>(),
    direct_family<6, 4>(),
    {channel_family<5, 5, 1>(), channel_family<7, 4, 1>(), channel_family<8, 3, 1>(),
     channel_family<13, 2, 1>()},
    {channel_family<5, 2, 2>(), channel_family<7, 2, 2>(), channel_family<8, 1, 2>(),
     channel_family<13, 1, 2>()},
    {weight_family<3, 9, 1>(), weight_family<3, 4, 2>(), weight_family<5, 5, 1>(),
     weight_family<5, 2, 2>(), weight_family<7, 4, 1>(), weight_family<7, 2, 2>()},
    dot_family<6, 4, 25>(),
    &add_lanes,
    &pack_panel,
    &add_shifted,
    &copy_pieces,
    &copy_block,
    &pack_columns,
    &unpack_columns,
};

}  // namespace fastconv::cpu
