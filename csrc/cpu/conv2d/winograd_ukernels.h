// SPDX-License-Identifier: MIT
// The transforms of Winograd's F(t x t, 3x3) for t = 2 and 4, per instruction set. A tile is a
// t x t patch of the output; it takes a (t + 2) x (t + 2) patch of the input. Lavin and Gray 2016
// (arXiv:1509.09308) for the method; for t = 4 the points are complex, as Meng and Brothers 2019
// (arXiv:1901.01965) choose them:
//
//   t = 2   0, 1, -1 and infinity:        16 coefficients, 4    products per output
//   t = 4   0, 1, -1, i, -i and infinity: 46 coefficients, 2.88 products per output
//
// Differences of these points are 1, 2, 1 +- i and 2i times a unit, so that no transform divides
// by anything but powers of two: small integers stay exact, and the errors of both are alike. No
// five rational points are like that. Coefficients at conjugate points are conjugate: one of two is
// kept, and three real products make a complex one.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

inline constexpr int64_t kMaxWinogradTile = 4;
inline constexpr int64_t kMaxWinogradPatch = kMaxWinogradTile + 2;

// u[k * coefficient_pitch + c * rows + i] = coefficient k of the kernel
// g[r][q] = taps[(c * 9 + 3 * r + q) * rows + i]; with `flip`, g[2 - r][2 - q] instead. `rows` is a
// multiple of the vector.
struct WinogradWeights {
  const float* taps;
  int64_t channels;
  int64_t rows;
  bool flip;
  float* u;
  int64_t coefficient_pitch;
};

// One tile, vectors along the channels:
//   v[k * coefficient_pitch + c] = coefficient k of d, channel c, d[r][q] = pixels[patch * r +
//   q][c]
// Whole vectors of v are written; past the last channel they are zero.
struct WinogradInput {
  const float* pixels[kMaxWinogradPatch * kMaxWinogradPatch];
  int64_t channels;
  float* v;
  int64_t coefficient_pitch;
};

// targets[tile * y + x][c] = bias[c] + output (y, x) of the products m[k * coefficient_pitch + c];
// a target that is nullptr is left out. Whole vectors of m are read.
struct WinogradOutput {
  const float* m;
  int64_t coefficient_pitch;
  int64_t channels;
  const float* bias;  // or nullptr
  float* targets[kMaxWinogradTile * kMaxWinogradTile];
};

// One tile of the output's gradient, vectors along the channels, by the transpose of the output's
// transform:
//   z[k * coefficient_pitch + c] = coefficient k of d, channel c, d[y][x] = pixels[tile * y + x][c]
// Whole vectors of z are written; past the last channel they are zero.
struct WinogradGradOutput {
  const float* pixels[kMaxWinogradTile * kMaxWinogradTile];
  int64_t channels;
  float* z;
  int64_t coefficient_pitch;
};

// taps[(3 * r + q) * tap_pitch + c] = tap (r, q) of the sums u[k * coefficient_pitch + c], by the
// transpose of the weights' transform. Whole vectors are read and written.
struct WinogradWeightSums {
  const float* u;
  int64_t coefficient_pitch;
  int64_t channels;
  float* taps;
  int64_t tap_pitch;
};

struct WinogradKernels {
  int64_t tile;             // outputs along one side of a tile
  int64_t coefficients;     // of a tile
  int64_t sum_coefficient;  // of z: the sum of the tile's pixels
  void (*transform_input)(const WinogradInput& input);
  void (*transform_weights)(const WinogradWeights& weights);
  void (*transform_output)(const WinogradOutput& output);
  void (*transform_grad_output)(const WinogradGradOutput& grad);
  void (*transform_weight_sums)(const WinogradWeightSums& sums);
  int64_t patch() const { return tile + 2; }
};

struct WinogradTable {
  WinogradKernels tile2;
  WinogradKernels tile4;
};

extern const WinogradTable kWinogradTableScalar;
extern const WinogradTable kWinogradTableAvx2;
extern const WinogradTable kWinogradTableAvx512;

// `tile` is 2 or 4.
inline const WinogradKernels& winograd_kernels(Isa isa, int64_t tile) {
  const WinogradTable& table = isa == Isa::kAvx512 ? kWinogradTableAvx512
                               : isa == Isa::kAvx2 ? kWinogradTableAvx2
                                                   : kWinogradTableScalar;
  return tile == 4 ? table.tile4 : table.tile2;
}

}  // namespace fastconv::cpu
