// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_pixel_rows.h"

#include <algorithm>

#include "common/checked.h"

namespace fastconv::cpu {

int64_t pixel_rows_floats(const PixelSource& source, int64_t images, int64_t rows) {
  if (source.in_place()) return 0;
  return round_up(images * std::min(rows, source.height) * source.width * source.channels, 16);
}

PixelRows pixel_rows(const Conv2dKernels& kernels, const PixelSource& source, int64_t images,
                     int64_t top, int64_t end, float* copy) {
  const Strides4& in = source.strides;
  if (source.in_place()) return {source.data, in.batch, in.row, in.column};
  top = std::clamp<int64_t>(top, 0, source.height);
  end = std::clamp<int64_t>(end, top, source.height);
  const int64_t row_pitch = source.width * source.channels;
  const int64_t image_pitch = (end - top) * row_pitch;
  // Rows that follow each other without a gap are one long row.
  const bool dense = in.row == source.width * in.column;
  const int64_t pieces = dense ? 1 : end - top;
  const int64_t pixels = dense ? (end - top) * source.width : source.width;
  for (int64_t n = 0; n < images; ++n)
    for (int64_t piece = 0; piece < pieces; ++piece)
      kernels.copy_block(
          {source.channels, pixels, source.data + n * in.batch + (top + piece) * in.row, in.channel,
           in.column, copy + n * image_pitch + piece * row_pitch, 1, source.channels});
  return {copy - top * row_pitch, image_pitch, row_pitch, source.channels};
}

}  // namespace fastconv::cpu
