// SPDX-License-Identifier: MIT
// Backward pooling of 2x2 windows with stride 2, which do not overlap: a vector of windows is read
// once and spread over its inputs. Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d_grad_rows_impl.h"

namespace {

// The counterpart of pool_packed_2x2: `group` rows of windows, at most kLanes windows, give at most
// 4 * kLanes contiguous inputs. `range` counts rows of windows.
template <class Grad>
void grad_packed_2x2(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const int64_t group = kLanes / s.out_width;
  const int64_t window_row = 2 * s.in_width;  // inputs of one row of windows
  Simd::Ints index[4];
  Simd::Ints taps[4];
  for (int64_t v = 0; v < 4; ++v) {
    int32_t window[kLanes];
    int32_t tap[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t at = v * kLanes + l;
      const int64_t column = at % s.in_width;
      const int64_t number = at / window_row * s.out_width + column / 2;
      window[l] = at < group * window_row ? static_cast<int32_t>(number) : 0;
      tap[l] = static_cast<int32_t>(2 * (at / s.in_width % 2) + column % 2);
    }
    index[v] = Simd::load_ints(window);
    taps[v] = Simd::load_ints(tap);
  }
  const auto first = grad.source(0, 0, 0, 0);
  for (int64_t row = range.begin; row < range.end; row += group) {
    const int64_t rows = min_of(group, range.end - row);
    const auto windows = grad.windows(grad.advance(first, row * s.out_width), rows * s.out_width);
    float* target = grad.call.grad_input + (row * window_row - grad.call.first_element);
#pragma GCC unroll 4
    for (int64_t v = 0; v < 4; ++v)
      Simd::store_masked(target + v * kLanes, grad.spread(windows, index[v], taps[v], 0),
                         lanes_in(v * kLanes, rows * window_row));
  }
}

// Which of the 2 * kLanes inputs of kLanes windows is which tap of which window.
struct Pairs {
  Pairs() {
    int32_t numbers[2 * kLanes], columns[2 * kLanes];
    for (int32_t l = 0; l < 2 * kLanes; ++l) {
      numbers[l] = l / 2;
      columns[l] = l % 2;
    }
    for (int half = 0; half < 2; ++half) {
      window[half] = Simd::load_ints(numbers + half * kLanes);
      tap[half] = Simd::load_ints(columns + half * kLanes);
    }
  }
  Simd::Ints window[2];
  Simd::Ints tap[2];
};

// `Rows` rows of inputs of one row of windows at `source`, of which there are `windows`; tap
// `first_tap` is the first of the upper row.
template <int Rows, class Grad>
[[gnu::always_inline]] inline void grad_spread_2x2(const Grad& grad, typename Grad::Source source,
                                                   int64_t windows, int64_t first_tap,
                                                   const Pairs& pairs, float* target) {
  const Pool2dShape& s = grad.call.shape;
  const int64_t pitch = grad.call.grad_input_strides.row;
  int64_t j = 0;
  for (; j + kLanes <= windows && 2 * (j + kLanes) <= s.in_width; j += kLanes) {
    const auto w = grad.all_windows(grad.advance(source, j));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r)
        Simd::store(target + r * pitch + 2 * j + half * kLanes,
                    grad.spread(w, pairs.window[half], pairs.tap[half], first_tap + 2 * r));
  }
  for (; 2 * j < s.in_width; j += kLanes) {
    const auto w = grad.windows(grad.advance(source, j), clamp_to(windows - j, 0, kLanes));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Simd::Mask inputs = lanes_in(2 * j + half * kLanes, s.in_width);
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r)
        Simd::store_masked(target + r * pitch + 2 * j + half * kLanes,
                           grad.spread(w, pairs.window[half], pairs.tap[half], first_tap + 2 * r),
                           inputs);
    }
  }
}

// Without padding: both input rows of a row of windows at once, where the range holds both.
template <class Grad>
void grad_rows_2x2(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const Pairs pairs;
  for (int64_t row = range.begin; row < range.end;) {
    const int64_t plane = row / s.in_height;
    const int64_t y = row % s.in_height;
    const int64_t n = plane / s.channels;
    const int64_t c = plane % s.channels;
    const int64_t i = y / 2;
    float* target = grad.call.grad_input + (element_of(grad.call.grad_input_strides, n, c, y, 0) -
                                            grad.call.first_element);
    const bool covered = i < s.out_height;
    const auto source = grad.source(n, c, covered ? i : 0, 0);
    const int64_t windows = covered ? s.out_width : 0;
    if (y % 2 == 0 && y + 1 < s.in_height && row + 1 < range.end) {
      grad_spread_2x2<2>(grad, source, windows, 0, pairs, target);
      row += 2;
    } else {
      grad_spread_2x2<1>(grad, source, windows, y % 2 * 2, pairs, target);
      row += 1;
    }
  }
}

template <class Grad>
void grad_2x2s2(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  if (s.padding_height != 0 || s.padding_width != 0) return grad_fixed_rows<2, 2>(grad, range);
  // A thread's range may begin or end between the two input rows of a window.
  const RowRange whole{(range.begin + 1) / 2, range.end / 2};
  if (s.out_width > kLanes || !grad.sources_dense() || whole.begin > whole.end ||
      !tiled_by_2x2(s, grad.call.grad_input_strides, grad.call.grad_output_strides))
    return grad_rows_2x2(grad, range);
  if (range.begin < 2 * whole.begin) grad_rows_2x2(grad, {range.begin, 2 * whole.begin});
  grad_packed_2x2(grad, whole);
  if (2 * whole.end < range.end) grad_rows_2x2(grad, {2 * whole.end, range.end});
}

}  // namespace
