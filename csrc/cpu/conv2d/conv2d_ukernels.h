// SPDX-License-Identifier: MIT
// What conv2d needs from an ISA beside the GEMM tiles: moving pixels into panels and tiles out.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// Input position of a kernel tap relative to the position of tap offset (0, 0).
struct TapOffset {
  int64_t row;
  int64_t column;
};

// A run of output pixels that lie side by side in one output row of one image.
struct PixelRun {
  int64_t length;
  const float* image;  // channel 0 (of the block) of the image the run reads
  int64_t row;         // input row and column of the run's first pixel at tap offset (0, 0);
  int64_t column;      // both may lie outside the image: such elements read as zero
};

// panel[(tap * channels + channel) * panel_pitch + pixel] =
//     image[channel, run.row + tap.row, run.column + pixel * column_step + tap.column]
// for the concatenated pixels of all runs. Writes exactly sum(length) floats per panel row.
struct PanelPack {
  const PixelRun* runs;
  int64_t run_count;
  const TapOffset* taps;
  int64_t tap_count;
  int64_t channels;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  int64_t column_step;
  int64_t height;
  int64_t width;
  float* panel;
  int64_t panel_pitch;
};

// target[channel * target_channel + pixel * target_pixel] =
//     source[channel * source_channel + pixel * source_pixel]
// Fast when channels or pixels are contiguous on each side (also across: a transposition).
struct BlockCopy {
  int64_t channels;
  int64_t pixels;
  const float* source;
  int64_t source_channel;
  int64_t source_pixel;
  float* target;
  int64_t target_channel;
  int64_t target_pixel;
};

struct Conv2dKernels {
  void (*pack_panel)(const PanelPack& pack);
  void (*copy_block)(const BlockCopy& copy);
};

extern const Conv2dKernels kConv2dKernelsScalar;
extern const Conv2dKernels kConv2dKernelsAvx2;
extern const Conv2dKernels kConv2dKernelsAvx512;

inline const Conv2dKernels& conv2d_kernels(Isa isa) {
  return isa == Isa::kAvx512  ? kConv2dKernelsAvx512
         : isa == Isa::kAvx2 ? kConv2dKernelsAvx2
                             : kConv2dKernelsScalar;
}

}  // namespace fastconv::cpu
