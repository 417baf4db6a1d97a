// SPDX-License-Identifier: MIT
// The three transforms of Winograd's F(2x2, 3x3), per instruction set: input, weights, output.
// A tile is a 2 x 2 patch of the output; it takes a 4 x 4 patch of the input and 16 coefficients.
// Lavin and Gray 2016 (arXiv:1509.09308).
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

inline constexpr int64_t kWinogradCoefficients = 16;

// u[k * coefficient_pitch + c * rows + i] = coefficient k of G g G^T for
// g[r][q] = taps[(c * 9 + 3 * r + q) * rows + i]; with `flip`, g[2 - r][2 - q] instead.
struct WinogradWeights {
  const float* taps;
  int64_t channels;
  int64_t rows;
  bool flip;
  float* u;
  int64_t coefficient_pitch;
};

// One tile, vectors along the channels:
//   v[k * coefficient_pitch + c] = coefficient k of B^T d B, channel c, d[r][q] = pixels[4 * r +
//   q][c]
// Whole vectors of v are written; past the last channel they are zero.
struct WinogradInput {
  const float* pixels[16];
  int64_t channels;
  float* v;
  int64_t coefficient_pitch;
};

// targets[2 * y + x][c] = bias[c] + (A^T m A)[y][x], m[k] = m[k * coefficient_pitch + c]; a target
// that is nullptr is left out. Whole vectors of m are read.
struct WinogradOutput {
  const float* m;
  int64_t coefficient_pitch;
  int64_t channels;
  const float* bias;  // or nullptr
  float* targets[4];
};

// One tile of the output's gradient, vectors along the channels:
//   z[k * coefficient_pitch + c] = coefficient k of A d A^T, channel c, d[y][x] = pixels[2 * y +
//   x][c]
// Whole vectors of z are written; past the last channel they are zero.
struct WinogradGradOutput {
  const float* pixels[4];
  int64_t channels;
  float* z;
  int64_t coefficient_pitch;
};

// taps[(3 * r + q) * tap_pitch + c] = (G^T u G)[r][q], u[k] = u[k * coefficient_pitch + c]. Whole
// vectors are read and written.
struct WinogradWeightSums {
  const float* u;
  int64_t coefficient_pitch;
  int64_t channels;
  float* taps;
  int64_t tap_pitch;
};

struct WinogradKernels {
  void (*transform_input)(const WinogradInput& input);
  void (*transform_weights)(const WinogradWeights& weights);
  void (*transform_output)(const WinogradOutput& output);
  void (*transform_grad_output)(const WinogradGradOutput& grad);
  void (*transform_weight_sums)(const WinogradWeightSums& sums);
};

extern const WinogradKernels kWinogradKernelsScalar;
extern const WinogradKernels kWinogradKernelsAvx2;
extern const WinogradKernels kWinogradKernelsAvx512;

inline const WinogradKernels& winograd_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kWinogradKernelsAvx512
         : isa == Isa::kAvx2 ? kWinogradKernelsAvx2
                             : kWinogradKernelsScalar;
}

}  // namespace fastconv::cpu
