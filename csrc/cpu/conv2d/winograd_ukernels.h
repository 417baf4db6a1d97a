// SPDX-License-Identifier: MIT
// The three transforms of Winograd's F(2x2, 3x3), per instruction set: input, weights, output.
// A tile is a 2 x 2 patch of the output; it takes a 4 x 4 patch of the input and 16 coefficients.
// Lavin and Gray 2016 (arXiv:1509.09308).
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

inline constexpr int64_t kWinogradCoefficients = 16;

// Tiles that lie side by side in one row of one image:
//   v[k * coefficient_pitch + c * channel_pitch + t] = coefficient k of B^T d B, channel c, tile t
// The patch holds four input rows, their even and odd columns apart:
//   patch[((c * 4 + row) * 2 + parity) * (tiles + 1) + t] = d[row][2 * t + parity]
struct WinogradInput {
  const float* patch;
  int64_t channels;
  int64_t tiles;
  float* v;
  int64_t coefficient_pitch;
  int64_t channel_pitch;
};

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

// output[i * out_channel + y * out_row + 2 * t + x] = bias[i] + (A^T m A)[y][x] of tile t, with
// m[k] = m[k * coefficient_pitch + i * row_pitch + t]; only y < out_rows and columns below
// out_columns are written.
struct WinogradOutput {
  const float* m;
  int64_t coefficient_pitch;
  int64_t row_pitch;
  int64_t rows;
  int64_t tiles;
  const float* bias;  // or nullptr
  float* output;
  int64_t out_channel;
  int64_t out_row;
  int64_t out_rows;     // 1 or 2
  int64_t out_columns;  // 2 * tiles or one less
};

struct WinogradKernels {
  void (*transform_input)(const WinogradInput& input);
  void (*transform_weights)(const WinogradWeights& weights);
  void (*transform_output)(const WinogradOutput& output);
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
