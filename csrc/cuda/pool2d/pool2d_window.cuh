// SPDX-License-Identifier: MIT
// Where windows lie, on the device. A tensor is [outer, H, W, inner]: outer N * C and inner 1 for
// contiguous tensors, outer N and inner C for channels_last. Index is int32_t or int64_t and holds
// every element number and position.
#pragma once

#include <cstdint>

#include "common/shapes.h"
#include "cuda/common/divmod.h"
#include "cuda/pool2d/pool2d.h"

namespace fastconv::cuda {

// Taps [begin, end) of a window that lie inside the input; `begin` is the first tap at or after
// position 0 even if none does.
template <typename Index>
struct TapRange {
  Index begin;
  Index end;
};

// One dimension of a window.
template <typename Index>
struct PoolAxis {
  Index in_size;
  Index out_size;
  Index kernel;
  Index stride;
  Index padding;
  Index dilation;

  __device__ Index origin(Index output) const { return output * stride - padding; }

  __device__ TapRange<Index> taps(Index first) const {
    if (dilation == 1) {
      const Index room = in_size - first;
      return {first < 0 ? -first : 0, room < kernel ? room : kernel};
    }
    const Index begin = first < 0 ? (-first + dilation - 1) / dilation : 0;
    const Index end = first >= in_size ? 0 : (in_size - first + dilation - 1) / dilation;
    return {begin, end < kernel ? end : kernel};
  }

  // Outputs [begin, end) whose windows reach over `position`; with dilation some have no tap there.
  __device__ TapRange<Index> outputs_over(Index position) const {
    const Index padded = position + padding;
    const Index extent = (kernel - 1) * dilation + 1;
    const Index begin = padded < extent ? 0 : (padded - extent) / stride + 1;
    const Index end = padded / stride + 1;
    return {begin, end < out_size ? end : out_size};
  }

  // The tap of window `output` at `position`, or -1.
  __device__ Index tap_at(Index output, Index position) const {
    const Index distance = position - origin(output);
    if (dilation == 1) return distance;
    return distance % dilation == 0 ? distance / dilation : -1;
  }

  // Elements that an average counts (dilation 1).
  __device__ Index counted(Index first, bool include_padding) const {
    if (include_padding) {
      const Index room = in_size + padding - first;
      return room < kernel ? room : kernel;
    }
    const TapRange<Index> inside = taps(first);
    return inside.end - inside.begin;
  }
};

// Numbers the vectors of a tensor [outer, height, width, inner].
template <class Divmod>
struct PoolGrid {
  using Index = typename Divmod::Index;
  int64_t items;
  Divmod by_inner;
  Divmod by_width;
  Divmod by_height;

  PoolGrid(int64_t outer, int64_t height, int64_t width, int64_t inner)
      : items(outer * height * width * inner),
        by_inner(inner),
        by_width(width),
        by_height(height) {}
};

template <typename Index>
struct PoolPosition {
  Index outer;
  Index row;
  Index column;
  Index inner;
};

template <class Divmod>
__device__ inline PoolPosition<typename Divmod::Index> position_of(const PoolGrid<Divmod>& grid,
                                                                   int64_t item) {
  PoolPosition<typename Divmod::Index> at;
  const auto pixel = grid.by_inner.divmod(static_cast<typename Divmod::Index>(item), at.inner);
  const auto row = grid.by_width.divmod(pixel, at.column);
  at.outer = grid.by_height.divmod(row, at.row);
  return at;
}

template <typename Index>
struct PoolShape {
  PoolAxis<Index> rows;
  PoolAxis<Index> columns;
  Index inner;

  explicit PoolShape(const Pool2dCall& call) : PoolShape(call.shape, call.channels_last) {}
  PoolShape(const Pool2dShape& s, bool channels_last)
      : rows{static_cast<Index>(s.in_height),      static_cast<Index>(s.out_height),
             static_cast<Index>(s.kernel_height),  static_cast<Index>(s.stride_height),
             static_cast<Index>(s.padding_height), static_cast<Index>(s.dilation_height)},
        columns{static_cast<Index>(s.in_width),      static_cast<Index>(s.out_width),
                static_cast<Index>(s.kernel_width),  static_cast<Index>(s.stride_width),
                static_cast<Index>(s.padding_width), static_cast<Index>(s.dilation_width)},
        inner(static_cast<Index>(channels_last ? s.channels : 1)) {}

  // Element number of (outer, row, column, channel) in the input and in the output.
  __device__ Index input_at(Index outer, Index row, Index column, Index channel) const {
    return ((outer * rows.in_size + row) * columns.in_size + column) * inner + channel;
  }
  __device__ Index output_at(Index outer, Index row, Index column, Index channel) const {
    return ((outer * rows.out_size + row) * columns.out_size + column) * inner + channel;
  }
};

inline int64_t pool_outer(const Pool2dShape& shape, bool channels_last) {
  return channels_last ? shape.batch : shape.batch * shape.channels;
}

// Grids of the outputs and of the inputs of a call, `vector` channels (channels_last) at a time.
template <class Divmod>
PoolGrid<Divmod> output_grid(const Pool2dShape& s, bool channels_last, int64_t vector) {
  return {pool_outer(s, channels_last), s.out_height, s.out_width,
          channels_last ? s.channels / vector : 1};
}
template <class Divmod>
PoolGrid<Divmod> input_grid(const Pool2dShape& s, bool channels_last, int64_t vector) {
  return {pool_outer(s, channels_last), s.in_height, s.in_width,
          channels_last ? s.channels / vector : 1};
}

// Offsets of either width; no pointer at all where none are recorded.
struct PoolOffsets {
  void* data;
  bool bytes;
};
inline PoolOffsets pool_offsets(const void* data, const Pool2dShape& shape) {
  return {const_cast<void*>(data), shape.taps() <= kMaxByteTaps};
}

}  // namespace fastconv::cuda
