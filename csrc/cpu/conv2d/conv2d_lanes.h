// SPDX-License-Identifier: MIT
// Vectors whose lanes are images: lane l of a vector holds one pixel of the l-th strip of a block.
// A strip is a whole image, or one of the `cuts` equal pieces that its rows are cut into where the
// batch has fewer images than a vector has lanes. Maps of any width fill such vectors, no load
// straddles two cache lines, and channel counts need not be multiples of anything.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/checked.h"
#include "common/shapes.h"
#include "cpu/conv2d/conv2d_prefetch.h"
#include "cpu/conv2d/conv2d_ukernels.h"

namespace fastconv::cpu {

// Strips are numbered cut by cut, so that the neighbours in a block are the same rows of
// neighbouring images.
struct LaneLayout {
  int64_t lanes;
  int64_t batch;
  int64_t cuts;

  int64_t strips() const { return batch * cuts; }
  int64_t blocks() const { return ceil_div(strips(), lanes); }
  int64_t used_lanes(int64_t block) const { return std::min(lanes, strips() - block * lanes); }
  // Share of all lanes that hold something.
  double fill() const {
    return static_cast<double>(strips()) / static_cast<double>(blocks() * lanes);
  }
};

// The number of cuts, a divisor of `rows`, that fills the lanes best; fewer when nearly as good.
inline LaneLayout choose_lanes(int64_t lanes, int64_t batch, int64_t rows) {
  constexpr int64_t kMostCuts = 4;
  constexpr double kWorthCutting = 1.1;
  LaneLayout best{lanes, batch, 1};
  for (int64_t cuts = 2; cuts <= std::min(kMostCuts, rows); ++cuts) {
    const LaneLayout layout{lanes, batch, cuts};
    if (rows % cuts == 0 && layout.fill() > kWorthCutting * best.fill()) best = layout;
  }
  return best;
}

// True when `threads` threads would not end their `units` pieces of work together.
inline bool is_uneven(int64_t units, int64_t threads) {
  return units < 4 * threads && units % threads != 0;
}

// Neighbouring lanes [lane, lane + count) of a block: one cut of neighbouring images.
struct LaneRun {
  int64_t lane;
  int64_t count;
  int64_t image;
  int64_t cut;
};

template <typename Visit>
void for_each_lane_run(const LaneLayout& layout, int64_t block, const Visit& visit) {
  const int64_t used = layout.used_lanes(block);
  for (int64_t lane = 0; lane < used;) {
    const int64_t strip = block * layout.lanes + lane;
    const int64_t image = strip % layout.batch;
    const int64_t count = std::min(used - lane, layout.batch - image);
    visit(LaneRun{lane, count, image, strip / layout.batch});
    lane += count;
  }
}

// Channels of a batch of images, and the window of every cut that is copied: rows from first_row +
// cut * cut_rows on. What lies outside the images is zero.
struct LaneWindow {
  const float* source;
  Strides4 strides;  // columns are neighbours
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t first_row;
  int64_t rows;
  int64_t cut_rows;
  int64_t first_column;
  int64_t columns;
};

// target[channel * target_channel + (row * columns + column) * lanes + lane]. Columns outside the
// image and unused lanes are not written: the caller clears the target before the first copy, and
// before that of a block with unused lanes.
inline void copy_to_lanes(const Conv2dKernels& kernels, const LaneLayout& layout, int64_t block,
                          const LaneWindow& w, float* target, int64_t target_channel) {
  const int64_t begin = std::clamp<int64_t>(-w.first_column, 0, w.columns);
  const int64_t end = std::clamp<int64_t>(w.width - w.first_column, begin, w.columns);
  const bool dense = end - begin == w.columns && w.columns == w.width && w.strides.row == w.width;
  const auto clear = [&](float* row, const LaneRun& run) {
    for (int64_t j = begin; j < end; ++j)
      std::memset(row + j * layout.lanes + run.lane, 0, sizeof(float) * run.count);
  };
  for_each_lane_run(layout, block, [&](const LaneRun& run) {
    const int64_t top = w.first_row + run.cut * w.cut_rows;
    const int64_t first = std::clamp<int64_t>(-top, 0, w.rows);
    const int64_t last = std::clamp<int64_t>(w.height - top, first, w.rows);
    const float* image = w.source + run.image * w.strides.batch + top * w.strides.row +
                         (w.first_column + begin) * w.strides.column;
    for (int64_t c = 0; c < w.channels; ++c) {
      const float* source = image + c * w.strides.channel;
      float* channel = target + c * target_channel;
      const auto row = [&](int64_t r) { return channel + r * w.columns * layout.lanes; };
      for (int64_t r = 0; r < first; ++r) clear(row(r), run);
      for (int64_t r = last; r < w.rows; ++r) clear(row(r), run);
      const int64_t pieces = dense ? 1 : last - first;
      const int64_t pixels = dense ? (last - first) * w.columns : end - begin;
      for (int64_t i = 0; i < pieces; ++i)
        kernels.copy_block({run.count, pixels, source + (first + i) * w.strides.row,
                            w.strides.batch, 1, row(first + i) + begin * layout.lanes + run.lane, 1,
                            layout.lanes});
    }
  });
}

// What copy_to_lanes would read of a window, to be brought near.
inline void prefetch_lanes(const LaneLayout& layout, int64_t block, const LaneWindow& w,
                           Prefetch* prefetch) {
  for_each_lane_run(layout, block, [&](const LaneRun& run) {
    const int64_t top = w.first_row + run.cut * w.cut_rows;
    const int64_t first = std::max<int64_t>(0, top);
    const int64_t floats = (std::min(w.height, top + w.rows) - first) * w.strides.row;
    if (floats <= 0) return;
    const float* image = w.source + run.image * w.strides.batch + first * w.strides.row;
    const bool whole = floats == w.strides.channel;  // the channels follow each other
    for (int64_t c = 0; c < (whole ? 1 : w.channels); ++c)
      prefetch->add(image + c * w.strides.channel, run.count, w.strides.batch,
                    whole ? floats * w.channels : floats);
  });
}

}  // namespace fastconv::cpu
