// SPDX-License-Identifier: MIT
// Flat numbering of the pixels of a batch of [height, width] grids, and rows of pixels that are
// copied out of a block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/conv2d/conv2d_ukernels.h"

namespace fastconv::cpu {

// Calls visit(image, row, column, length, offset) for each run of neighbouring pixels in one row of
// one image that makes up the flat range [first, first + count); offset counts from `first`.
template <typename Visit>
void for_each_pixel_run(int64_t first, int64_t count, int64_t height, int64_t width,
                        const Visit& visit) {
  int64_t image = first / (height * width);
  int64_t row = first / width % height;
  int64_t column = first % width;
  for (int64_t offset = 0; offset < count;) {
    const int64_t length = std::min(width - column, count - offset);
    visit(image, row, column, length, offset);
    offset += length;
    column = 0;
    if (++row == height) {
      row = 0;
      ++image;
    }
  }
}

// Makes the copy `row` for `rows` rows of pixels, which follow each other without a gap in the
// source and are target_row apart in the target.
inline void store_pixel_rows(const Conv2dKernels& kernels, BlockCopy row, int64_t rows,
                             int64_t target_row) {
  if (target_row == row.pixels * row.target_pixel) {  // one long row
    row.pixels *= rows;
    rows = 1;
  }
  for (int64_t i = 0; i < rows; ++i) {
    kernels.copy_block(row);
    row.source += row.pixels * row.source_pixel;
    row.target += target_row;
  }
}

}  // namespace fastconv::cpu
