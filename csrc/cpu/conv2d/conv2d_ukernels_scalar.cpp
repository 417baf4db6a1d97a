// SPDX-License-Identifier: MIT
// conv2d data movement for scalar.
#include "cpu/simd/simd_scalar.h"

#include "cpu/conv2d/conv2d_tiles_impl.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_ukernels_impl.h"
#include "cpu/conv2d/conv2d_weight_tiles_impl.h"

namespace fastconv::cpu {

const Conv2dKernels kConv2dKernelsScalar = {
    direct_family<4, 2>(),
    direct_family<3, 3>(),
    {channel_family<5, 1, 1>(), channel_family<7, 1, 1>(), channel_family<8, 1, 1>(),
     channel_family<13, 1, 1>()},
    {channel_family<5, 1, 2>(), channel_family<7, 1, 2>(), channel_family<8, 1, 2>(),
     channel_family<13, 1, 2>()},
    {weight_family<3, 2, 1>(), weight_family<3, 1, 2>(), weight_family<5, 1, 1>(),
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
