// SPDX-License-Identifier: MIT
// Winograd transforms for avx512.
#include "cpu/simd/simd_avx512.h"

#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/conv2d/winograd_ukernels_impl.h"

namespace fastconv::cpu {

const WinogradTable kWinogradTableAvx512 = {winograd_form<Tile2>(), winograd_form<Tile4>()};

}  // namespace fastconv::cpu
