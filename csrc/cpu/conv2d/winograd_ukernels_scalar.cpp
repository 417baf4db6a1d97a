// SPDX-License-Identifier: MIT
// Winograd transforms for scalar.
#include "cpu/simd/simd_scalar.h"

#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/conv2d/winograd_ukernels_impl.h"

namespace fastconv::cpu {

const WinogradTable kWinogradTableScalar = {winograd_form<Tile2>(), winograd_form<Tile4>()};

}  // namespace fastconv::cpu
