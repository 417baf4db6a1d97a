// SPDX-License-Identifier: MIT
// What the kernels of this folder keep in shared memory: the pixels that the kernel positions of a
// rectangle of 2 x 2 windows read, [channels][rows][columns] with a pitch, zeros outside the image.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/shapes.h"
#include "cuda/common/activation.cuh"
#include "cuda/common/divmod.h"

namespace fastconv::cuda {

struct TileLayout {
  int rows;
  int columns;
  int pitch;  // floats from row to row
  FastDivmod by_columns;
  FastDivmod by_rows;

  __host__ __device__ int plane() const { return rows * pitch; }
};

// One image in global memory, from the tile's first channel on; `height` x `width`, zeros around.
struct ImageSource {
  const float* data;
  Strides4 strides;
  int height;
  int width;
};

// The gradient of a convolution's output behind activation and 2 x 2 max pooling, as the forward
// pass left it: one value per window, at the tap that won. [channels][cell_rows][cell_columns].
struct MaxGradSource {
  const float* grad;
  const float* output;
  const uint8_t* offsets;
  int cell_rows;
  int cell_columns;
  Activation activation;
  float slope;

  __device__ float value(int64_t at) const {
    return activation_grad(__ldg(grad + at), __ldg(output + at), activation, slope);
  }
};

// Pixel (top, left) of the image goes to the first element of the tile. All threads of the block
// take part; a barrier has to follow.
__device__ inline void load_tile(const TileLayout& tile, const ImageSource& image, int channels,
                                 int top, int left, float* shared, int thread, int threads) {
  const int count = channels * tile.rows * tile.columns;
  for (int at = thread; at < count; at += threads) {
    int row, column;
    const int channel = tile.by_rows.divmod(tile.by_columns.divmod(at, column), row);
    const int y = top + row, x = left + column;
    const bool inside = y >= 0 && y < image.height && x >= 0 && x < image.width;
    const int64_t from =
        channel * image.strides.channel + y * image.strides.row + x * image.strides.column;
    shared[channel * tile.plane() + row * tile.pitch + column] =
        inside ? __ldg(image.data + from) : 0.0f;
  }
}

// As above, of the gradient that `source` stands for: every window, also those outside, writes its
// four pixels, three of them zero.
__device__ inline void load_tile(const TileLayout& tile, const MaxGradSource& source, int channels,
                                 int top, int left, float* shared, int thread, int threads) {
  // Windows that touch the tile; the division rounds down.
  const int first_row = top >> 1, first_column = left >> 1;
  const int rows = ((top + tile.rows - 1) >> 1) - first_row + 1;
  const int columns = ((left + tile.columns - 1) >> 1) - first_column + 1;
  const int per_channel = rows * columns;
  for (int at = thread; at < channels * per_channel; at += threads) {
    const int channel = at / per_channel, cell = at - channel * per_channel;
    const int row = cell / columns, column = cell - row * columns;
    const int i = first_row + row, j = first_column + column;
    float value = 0.0f;
    int winner = 0;
    if (i >= 0 && i < source.cell_rows && j >= 0 && j < source.cell_columns) {
      const int64_t from =
          (static_cast<int64_t>(channel) * source.cell_rows + i) * source.cell_columns + j;
      value = source.value(from);
      winner = __ldg(source.offsets + from);
    }
    float* target = shared + channel * tile.plane();
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      const int y = 2 * i + tap / 2 - top, x = 2 * j + tap % 2 - left;
      if (y >= 0 && y < tile.rows && x >= 0 && x < tile.columns)
        target[y * tile.pitch + x] = tap == winner ? value : 0.0f;
    }
  }
}

}  // namespace fastconv::cuda
