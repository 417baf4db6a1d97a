// SPDX-License-Identifier: MIT
// Pooling where channels are contiguous (channels_last): one vector holds neighbouring channels of
// one pixel, so every window, stride and dilation is the same few loops and no lane meets an edge.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d_grad_policies_impl.h"
#include "cpu/pool2d/pool2d_policies_impl.h"
#include "cpu/pool2d/pool2d_ukernels.h"

namespace {

using fastconv::cpu::RowRange;

constexpr int kBlockVectors = 4;  // vectors of channels that share one walk over the window

// True when the channels of every pixel are whole cache lines.
inline bool streams_channels(const Pool2dShape& s, const float* target, const Strides4& strides) {
  constexpr int64_t kLineFloats = 16;
  return (s.channels | strides.batch | strides.row | strides.column) % kLineFloats == 0 &&
         reinterpret_cast<uintptr_t>(target) % (kLineFloats * sizeof(float)) == 0;
}

// As prefetch_row in pool2d_rows_impl.h; only for tensors that come out of memory.
template <int Vectors>
inline void prefetch_channels(const float* p) {
  constexpr int64_t kAhead = 2048;
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) __builtin_prefetch(p + v * kLanes + kAhead);
}

// Vectors * kLanes channels of one output (the last vector has `last` of them).
template <int Vectors, bool Stream, class Pool>
inline void pool_pixel(const Pool& pool, const float* first, TapRange rows, TapRange columns,
                       typename Pool::Row row, typename Pool::Columns column_data, int64_t element,
                       int64_t last) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t row_step = s.dilation_height * pool.call.input_strides.row;
  const int64_t column_step = s.dilation_width * pool.call.input_strides.column;
  const Simd::Mask mask = Simd::mask_first(last);
  typename Pool::State state[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) state[v] = pool.start(row, column_data);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t q = columns.begin; q < columns.end; ++q) {
      const float* tap = first + r * row_step + q * column_step;
      const int64_t number = r * s.kernel_width + q;
      if constexpr (Stream) {
        if (r >= s.kernel_height - s.stride_height && q >= s.kernel_width - s.stride_width)
          prefetch_channels<Vectors>(tap);
      }
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        pool.add(state[v],
                 Vectors == 1 ? Simd::load_masked(tap, mask) : Simd::load(tap + v * kLanes),
                 number);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v)
    pool.template store<Stream>(state[v], row, column_data, element + v * kLanes,
                                Vectors == 1 ? last : kLanes);
}

template <bool Stream, class Pool>
void pool_channel_rows(const Pool& pool, RowRange range) {
  const Pool2dShape& s = pool.call.shape;
  const Strides4& in = pool.call.input_strides;
  const Strides4& out = pool.call.output_strides;
  for (int64_t flat = range.begin; flat < range.end; ++flat) {
    const int64_t n = flat / s.out_height;
    const int64_t i = flat % s.out_height;
    const int64_t row_origin = i * s.stride_height - s.padding_height;
    const TapRange rows = taps_inside(row_origin, s.dilation_height, s.kernel_height, s.in_height);
    const typename Pool::Row row = pool.row(i, rows);
    for (int64_t j = 0; j < s.out_width; ++j) {
      const int64_t origin = j * s.stride_width - s.padding_width;
      const TapRange columns = taps_inside(origin, s.dilation_width, s.kernel_width, s.in_width);
      const typename Pool::Columns data = pool.same_column(j);
      const float* first =
          pool.call.input + n * in.batch + row_origin * in.row + origin * in.column;
      const int64_t element = n * out.batch + i * out.row + j * out.column;
      int64_t c = 0;
      for (; c + kBlockVectors * kLanes <= s.channels; c += kBlockVectors * kLanes)
        pool_pixel<kBlockVectors, Stream>(pool, first + c, rows, columns, row, data, element + c,
                                          kLanes);
      for (; c < s.channels; c += kLanes)
        pool_pixel<1, Stream>(pool, first + c, rows, columns, row, data, element + c,
                              min_of(kLanes, s.channels - c));
    }
  }
}

template <class Pool>
void pool_channels(const Pool& pool, RowRange range) {
  if (pool.call.stream &&
      streams_channels(pool.call.shape, pool.call.output, pool.call.output_strides))
    return pool_channel_rows<true>(pool, range);
  pool_channel_rows<false>(pool, range);
}

// Windows with a tap at one position, and the tap: window w has tap (padded - w * stride) /
// dilation.
struct TapWindows {
  TapRange windows;
  int64_t padded;
  int64_t stride;
  int64_t dilation;

  // The tap of window w here, or -1 when the position falls between two taps.
  int64_t tap(int64_t w) const {
    const int64_t distance = padded - w * stride;
    if (dilation == 1) return distance;
    return distance % dilation == 0 ? distance / dilation : -1;
  }

  // Moves on to the next position; `extent` is the reach of a window.
  void advance(int64_t extent, int64_t outputs) {
    ++padded;
    if (windows.end < outputs && windows.end * stride <= padded) ++windows.end;
    if (windows.begin * stride + extent <= padded) ++windows.begin;
  }
};

template <int Vectors, bool Stream, class Grad>
inline void grad_pixel(const Grad& grad, int64_t n, int64_t c, const TapWindows& rows,
                       const TapWindows& columns, float* target, int64_t last) {
  const Simd::Mask mask = Simd::mask_first(last);
  Simd::Reg sum[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) sum[v] = Simd::zero();
  for (int64_t i = rows.windows.begin; i < rows.windows.end; ++i) {
    const int64_t r = rows.tap(i);
    if (r < 0) continue;
    for (int64_t j = columns.windows.begin; j < columns.windows.end; ++j) {
      const int64_t q = columns.tap(j);
      if (q < 0) continue;
      const auto source = grad.source(n, c, i, j);
      const Simd::Ints tap = grad.tap(r * grad.call.shape.kernel_width + q);
      if constexpr (Stream) {
        if (r == 0 && q == 0) grad.template prefetch<Vectors>(source);
      }
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        sum[v] = Vectors == 1 ? grad.add_range(sum[v], source, 0, tap, 0, last, mask)
                              : grad.add_all(sum[v], source, v * kLanes, tap);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v)
    store_lanes<Stream>(target + v * kLanes, grad.finish(sum[v]), Vectors == 1 ? last : kLanes);
}

// kBlockVectors * kLanes channels of one window to columns `range` of a row.
template <bool Stream, class Grad>
inline void give_block(const Grad& grad, typename Grad::Source source, int64_t first_tap,
                       RowRange range, float* row) {
  typename Grad::Windows window[kBlockVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kBlockVectors; ++v)
    window[v] = grad.all_windows(grad.advance(source, v * kLanes));
  for (int64_t at = range.begin; at < range.end; ++at) {
    const Simd::Ints tap = grad.tap(first_tap + at);
    float* target = row + at * grad.call.grad_input_strides.column;
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v)
      store_lanes<Stream>(target + v * kLanes, grad.give(window[v], tap), kLanes);
  }
}

// Windows that do not overlap: each gives its channels to its taps in turn, and inputs of no window
// become zero.
template <bool Stream, class Grad>
void grad_separate_channels(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const Strides4& gi = grad.call.grad_input_strides;
  for (int64_t flat = range.begin; flat < range.end; ++flat) {
    const int64_t n = flat / s.in_height;
    const int64_t y = flat % s.in_height;
    const int64_t i = (y + s.padding_height) / s.stride_height;
    const int64_t r = (y + s.padding_height) % s.stride_height;
    const int64_t windows = i < s.out_height && r < s.kernel_height ? s.out_width : 0;
    float* row = grad.call.grad_input + n * gi.batch + y * gi.row;
    const auto fill_zero = [&](int64_t begin, int64_t end) {
      for (int64_t x = begin; x < end; ++x)
        for (int64_t c = 0; c < s.channels; c += kLanes)
          store_lanes<Stream>(row + x * gi.column + c, Simd::zero(),
                              min_of(kLanes, s.channels - c));
    };
    int64_t x = 0;
    for (int64_t j = 0; j < windows && x < s.in_width; ++j) {
      const int64_t origin = j * s.stride_width - s.padding_width;
      const int64_t end = min_of(origin + s.kernel_width, s.in_width);
      const auto source = grad.source(n, 0, i, j);
      int64_t c = 0;
      for (; c + kBlockVectors * kLanes <= s.channels; c += kBlockVectors * kLanes)
        give_block<Stream>(grad, grad.advance(source, c), r * s.kernel_width - origin, {x, end},
                           row + c);
      for (; c < s.channels; c += kLanes) {
        const int64_t count = min_of(kLanes, s.channels - c);
        const auto window = grad.windows(grad.advance(source, c), count);
        for (int64_t at = x; at < end; ++at)
          store_lanes<Stream>(row + at * gi.column + c,
                              grad.give(window, grad.tap(r * s.kernel_width + at - origin)), count);
      }
      const int64_t next = min_of(origin + s.stride_width, s.in_width);
      fill_zero(end, next);
      x = next;
    }
    fill_zero(x, s.in_width);
  }
}

// Every input gathers from the windows that hold it, in row-major order of the windows.
template <bool Stream, class Grad>
void grad_channel_rows(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const Strides4& gi = grad.call.grad_input_strides;
  if (s.dilation_height == 1 && s.dilation_width == 1 && s.stride_height >= s.kernel_height &&
      s.stride_width >= s.kernel_width)
    return grad_separate_channels<Stream>(grad, range);
  const int64_t extent_height = (s.kernel_height - 1) * s.dilation_height + 1;
  const int64_t extent_width = (s.kernel_width - 1) * s.dilation_width + 1;
  for (int64_t flat = range.begin; flat < range.end; ++flat) {
    const int64_t n = flat / s.in_height;
    const int64_t y = flat % s.in_height;
    const TapWindows rows{
        windows_over(y + s.padding_height, extent_height, s.stride_height, s.out_height),
        y + s.padding_height, s.stride_height, s.dilation_height};
    TapWindows columns{windows_over(s.padding_width, extent_width, s.stride_width, s.out_width),
                       s.padding_width, s.stride_width, s.dilation_width};
    for (int64_t x = 0; x < s.in_width; ++x, columns.advance(extent_width, s.out_width)) {
      float* target = grad.call.grad_input + n * gi.batch + y * gi.row + x * gi.column;
      int64_t c = 0;
      for (; c + kBlockVectors * kLanes <= s.channels; c += kBlockVectors * kLanes)
        grad_pixel<kBlockVectors, Stream>(grad, n, c, rows, columns, target + c, kLanes);
      for (; c < s.channels; c += kLanes)
        grad_pixel<1, Stream>(grad, n, c, rows, columns, target + c,
                              min_of(kLanes, s.channels - c));
    }
  }
}

template <class Grad>
void grad_channels(const Grad& grad, RowRange range) {
  if (grad.call.stream &&
      streams_channels(grad.call.shape, grad.call.grad_input, grad.call.grad_input_strides))
    return grad_channel_rows<true>(grad, range);
  grad_channel_rows<false>(grad, range);
}

}  // namespace
