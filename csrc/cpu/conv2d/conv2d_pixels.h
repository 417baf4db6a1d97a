// SPDX-License-Identifier: MIT
// Flat numbering of the pixels of a batch of [height, width] grids.
#pragma once

#include <algorithm>
#include <cstdint>

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

}  // namespace fastconv::cpu
