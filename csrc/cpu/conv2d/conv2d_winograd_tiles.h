// SPDX-License-Identifier: MIT
// The tiles of a block, for Winograd's forward form and its weight gradient.
#pragma once

#include <cstdint>

namespace fastconv::cpu {

// Rows of tiles [first_row, first_row + rows) of neighbouring images.
struct TileBlock {
  int64_t images;
  int64_t first_row;
  int64_t rows;
  int64_t row_tiles;
  int64_t tile;  // outputs along one side of a tile
};

// Calls visit(index, n, i, j) for every tile of the block: image, row and column of its first
// output pixel.
template <typename Visit>
void for_each_tile(const TileBlock& block, const Visit& visit) {
  int64_t index = 0;
  for (int64_t n = 0; n < block.images; ++n)
    for (int64_t i = 0; i < block.rows; ++i)
      for (int64_t j = 0; j < block.row_tiles; ++j)
        visit(index++, n, block.tile * (block.first_row + i), block.tile * j);
}

}  // namespace fastconv::cpu
