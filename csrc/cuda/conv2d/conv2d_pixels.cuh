// SPDX-License-Identifier: MIT
// Which pixel a row of ConvGemm's product stands for.
#pragma once

#include "cuda/conv2d/conv2d_gemm.h"

namespace fastconv::cuda {

struct GemmPixel {
  int32_t image;
  int32_t row;
  int32_t column;
};

// Window `at` of the phase, in windows; without pooling a window is a pixel.
__device__ inline GemmPixel window_at(const GemmPhase& phase, int32_t at) {
  GemmPixel p;
  int32_t rest;
  p.image = phase.pixels_divisor.divmod(at, rest);
  p.row = phase.columns_divisor.divmod(rest, p.column);
  return p;
}

// The pixel of row `m` of the product, in pixels of the convolution.
__device__ inline GemmPixel pixel_of(const GemmWindow& window, const GemmPhase& phase, int32_t m) {
  const int32_t tap = m & (window.taps() - 1);
  GemmPixel p = window_at(phase, m >> window.log_taps());
  p.row = (p.row << window.log_height) + (tap >> window.log_width);
  p.column = (p.column << window.log_width) + (tap & ((1 << window.log_width) - 1));
  return p;
}

}  // namespace fastconv::cuda
