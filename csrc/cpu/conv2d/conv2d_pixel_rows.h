// SPDX-License-Identifier: MIT
// A view of images whose pixels are rows of channels: in place in channels_last, else a transposed
// copy of the rows somebody needs.
//
// Where a pixel has few channels, the pixels that one kernel row reads are taken together as one
// row of kernel_width * channels floats ("folded"): they are neighbours in memory, once the borders
// are padded.
#pragma once

#include <cstdint>

#include "common/shapes.h"
#include "cpu/conv2d/conv2d_ukernels.h"

namespace fastconv::cpu {

// Pixel (n, row, column) lies at origin + n * image_pitch + row * row_pitch + column * pixel_pitch,
// its channels side by side.
struct PixelRows {
  const float* origin;
  int64_t image_pitch;
  int64_t row_pitch;
  int64_t pixel_pitch;
};

// Some channels of neighbouring images.
struct PixelSource {
  const float* data;  // pixel (0, 0) of the first image, first channel
  Strides4 strides;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t left;   // columns of zeros wanted before column 0 and
  int64_t right;  // after the last one
  bool folded;    // pixels must be neighbours without a gap
  bool in_place() const {
    return strides.channel == 1 && left + right == 0 && (!folded || strides.column == channels);
  }
};

// Whether folding pays for pixels of `channels` channels.
inline bool folding_pays(int64_t channels, int64_t kernel_width) {
  constexpr int64_t kFewChannels = 12;
  return channels <= kFewChannels && kernel_width > 1;
}

// Floats of memory that pixel_rows wants for `rows` rows of `images` images.
int64_t pixel_rows_floats(const PixelSource& source, int64_t images, int64_t rows);

// Makes rows [top, end) of `images` images readable; top and end are brought inside the image
// first.
PixelRows pixel_rows(const Conv2dKernels& kernels, const PixelSource& source, int64_t images,
                     int64_t top, int64_t end, float* copy);

}  // namespace fastconv::cpu
