// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_pixel_rows.h"

#include <algorithm>

#include "common/checked.h"

namespace fastconv::cpu {

int64_t pixel_rows_floats(const PixelSource& source, int64_t images, int64_t rows) {
  if (source.in_place()) return 0;
  const int64_t width = source.left + source.width + source.right;
  return round_up(images * std::min(rows, source.height) * width * source.channels, 16);
}

PixelRows pixel_rows(const Conv2dKernels& kernels, const PixelSource& source, int64_t images,
                     int64_t top, int64_t end, float* copy) {
  const Strides4& in = source.strides;
  if (source.in_place()) return {source.data, in.batch, in.row, in.column};
  top = std::clamp<int64_t>(top, 0, source.height);
  end = std::clamp<int64_t>(end, top, source.height);
  const int64_t left = source.left * source.channels;
  const int64_t right = source.right * source.channels;
  const int64_t row_pitch = left + source.width * source.channels + right;
  const int64_t image_pitch = (end - top) * row_pitch;
  // Rows that follow each other without a gap are one long row.
  const bool dense = in.row == source.width * in.column && left + right == 0;
  const int64_t pieces = dense ? 1 : end - top;
  const int64_t pixels = dense ? (end - top) * source.width : source.width;
  for (int64_t n = 0; n < images; ++n)
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const float* from = source.data + n * in.batch + (top + piece) * in.row;
      float* to = copy + n * image_pitch + piece * row_pitch;
      std::fill_n(to, left, 0.0f);
      std::fill_n(to + row_pitch - right, right, 0.0f);
      if (in.channel == 1 && in.column == source.channels) {
        std::copy_n(from, pixels * source.channels, to + left);
      } else {
        kernels.copy_block(
            {source.channels, pixels, from, in.channel, in.column, to + left, 1, source.channels});
      }
    }
  return {copy + left - top * row_pitch, image_pitch, row_pitch, source.channels};
}

}  // namespace fastconv::cpu
