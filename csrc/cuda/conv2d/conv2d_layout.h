// SPDX-License-Identifier: MIT
// Brings tensors into the layout that the tensor-core kernels read: channels innermost, in vectors
// of 16 bytes, padded with zeros at the end of each group.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/shapes.h"
#include "cuda/conv2d/conv2d_gemm.h"

namespace fastconv::cuda {

// Copies [images, groups * channels, height, width] of any strides to
// [images, height, width, groups, padded_channels].
struct PixelCopy {
  const void* from;
  Strides4 strides;
  void* to;
  int64_t images;
  int64_t height;
  int64_t width;
  int64_t groups;
  int64_t channels;         // of a group
  int64_t padded_channels;  // of a group: whole vectors
  int element_bytes;        // 2 or 4
};

// Precondition: images * height * width < 2^31.
cudaError_t launch_conv2d_copy_pixels(const PixelCopy& copy, cudaStream_t stream);

// The taps of one phase of ConvGemm: kernel rows first + k * step, k < count.
struct PhaseTaps {
  int32_t first_row;
  int32_t rows;
  int32_t first_column;
  int32_t columns;
  int64_t vectors;  // where the phase starts in a group of the packed weights
};

// Packs weights as ConvGemm reads them: [groups, phases: [rows, taps, padded_channels]], the rows
// being channels of the result, the channels those of the reduction.
struct WeightPack {
  const void* from;
  int64_t group_stride;  // in elements of `from`
  int64_t row_stride;
  int64_t channel_stride;
  int64_t tap_row_stride;
  int64_t tap_column_stride;
  void* to;
  int32_t groups;
  int32_t rows;
  int32_t channels;
  int32_t padded_channels;
  int32_t tap_row_step;
  int32_t tap_column_step;
  int64_t group_vectors;
  int element_bytes;  // 2 or 4
  int32_t phase_count;
  PhaseTaps phases[kMaxPhases];
};

cudaError_t launch_conv2d_pack_weights(const WeightPack& pack, cudaStream_t stream);

}  // namespace fastconv::cuda
