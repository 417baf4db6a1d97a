// SPDX-License-Identifier: MIT
// Brings memory that is read next into L2 while something else is computed. Large batches do not
// fit the caches, and the tiles that read them in the order of the arithmetic wait for memory line
// by line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/checked.h"
#include "common/shapes.h"

namespace fastconv::cpu {

class Prefetch {
 public:
  void clear() {
    pieces_.clear();
    lines_ = 0;
    per_step_ = 0;
  }

  // `rows` rows of `floats` neighbouring floats, `pitch` apart; to be read or to be overwritten.
  void add(const float* first, int64_t rows, int64_t pitch, int64_t floats) {
    if (floats >= pitch) {
      floats += (rows - 1) * pitch;
      rows = 1;
    }
    pieces_.push_back({first, rows, pitch, floats});
    lines_ += rows * (ceil_div(floats, kLine) + 1);
  }

  // `rows` rows of `channels` planes, of images whose columns or channels are neighbours; others
  // are left to their reader.
  void add_image(const float* first, const Strides4& strides, int64_t channels, int64_t rows) {
    if (rows <= 0) return;
    if (strides.column == 1) add(first, channels, strides.channel, rows * strides.row);
    if (strides.column != 1 && strides.channel == 1) add(first, 1, 0, rows * strides.row);
  }

  // To be done in `steps` steps.
  void start(int64_t steps) {
    per_step_ = ceil_div(lines_, steps);
    piece_ = 0;
    row_ = 0;
    float_ = 0;
  }

  void step() {
    for (int64_t left = per_step_; left > 0 && piece_ < pieces_.size();) {
      const Piece& piece = pieces_[piece_];
      const float* row = piece.first + row_ * piece.pitch;
      for (; left > 0 && float_ < piece.floats; float_ += kLine, --left)
        __builtin_prefetch(row + float_, 0, 2);
      if (float_ < piece.floats) return;
      __builtin_prefetch(row + piece.floats - 1, 0, 2);
      --left;
      float_ = 0;
      if (++row_ < piece.rows) continue;
      row_ = 0;
      ++piece_;
    }
  }

 private:
  static constexpr int64_t kLine = 16;  // floats

  struct Piece {
    const float* first;
    int64_t rows;
    int64_t pitch;
    int64_t floats;
  };

  std::vector<Piece> pieces_;
  int64_t lines_ = 0;
  int64_t per_step_ = 0;
  size_t piece_ = 0;
  int64_t row_ = 0;
  int64_t float_ = 0;
};

// A slot's share of `units` pieces of work, in order: work->run(unit(u), next), where `next` is
// what to bring near meanwhile, unit(u + 1), or nullptr behind the last one.
template <typename UnitOf, typename Work>
void run_share(int64_t units, int64_t slot, int64_t slots, const UnitOf& unit, Work* work) {
  const int64_t end = units * (slot + 1) / slots;
  for (int64_t u = units * slot / slots; u < end; ++u) {
    if (u + 1 == end) return work->run(unit(u), nullptr);
    const auto next = unit(u + 1);
    work->run(unit(u), &next);
  }
}

}  // namespace fastconv::cpu
