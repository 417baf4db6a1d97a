// SPDX-License-Identifier: MIT
#include "cpu/pool2d/pool2d_reference.h"

#include <algorithm>
#include <limits>

#include "cpu/pool2d/pool2d_dispatch.h"
#include "cpu/pool2d/pool2d_window.h"

namespace fastconv::cpu {
namespace {

int64_t element(const Strides4& strides, int64_t n, int64_t c, int64_t i, int64_t j) {
  return n * strides.batch + c * strides.channel + i * strides.row + j * strides.column;
}

int64_t row_origin(const Pool2dShape& s, int64_t i) {
  return i * s.stride_height - s.padding_height;
}

int64_t column_origin(const Pool2dShape& s, int64_t j) {
  return j * s.stride_width - s.padding_width;
}

// Calls body(n, c) for every plane, on several threads when the work is worth it.
template <class Body>
void for_each_plane(const Pool2dShape& s, const Body& body) {
  if (s.batch * s.channels == 0) return;
  for_row_ranges(s.batch * s.channels, 8 * output_elements(s) * s.taps(), 0, [&](RowRange range) {
    for (int64_t plane = range.begin; plane < range.end; ++plane)
      body(plane / s.channels, plane % s.channels);
  });
}

template <class Body>
void for_each_output(const Pool2dShape& s, const Body& body) {
  for (int64_t i = 0; i < s.out_height; ++i)
    for (int64_t j = 0; j < s.out_width; ++j) body(i, j);
}

// Reads and writes offsets of either width.
struct Offsets {
  explicit Offsets(const Pool2dShape& s) : type(offset_type_of(s.taps())) {}
  int64_t get(const void* offsets, int64_t at) const {
    return type == OffsetType::kUint8 ? static_cast<const uint8_t*>(offsets)[at]
                                      : static_cast<const int32_t*>(offsets)[at];
  }
  void set(void* offsets, int64_t at, int64_t tap) const {
    if (type == OffsetType::kUint8) {
      static_cast<uint8_t*>(offsets)[at] = static_cast<uint8_t>(tap);
    } else {
      static_cast<int32_t*>(offsets)[at] = static_cast<int32_t>(tap);
    }
  }
  OffsetType type;
};

struct Position {
  int64_t row;
  int64_t column;
  bool inside(const Pool2dShape& s) const {
    return row >= 0 && row < s.in_height && column >= 0 && column < s.in_width;
  }
};

// Where tap number `tap` of window (i, j) reads.
Position tap_position(const Pool2dShape& s, int64_t i, int64_t j, int64_t tap) {
  return {row_origin(s, i) + tap / s.kernel_width * s.dilation_height,
          column_origin(s, j) + tap % s.kernel_width * s.dilation_width};
}

int64_t divisor_of(const Pool2dShape& s, const AvgDivisor& d, int64_t i, int64_t j) {
  if (d.divisor_override != 0) return d.divisor_override;
  return counted_taps(row_origin(s, i), s.kernel_height, s.in_height, s.padding_height,
                      d.count_include_pad) *
         counted_taps(column_origin(s, j), s.kernel_width, s.in_width, s.padding_width,
                      d.count_include_pad);
}

}  // namespace

template <typename T>
void max_pool2d_forward_reference(const MaxPool2dForward<T>& call) {
  const Pool2dShape& s = call.shape;
  const Offsets offsets(s);
  for_each_plane(s, [&](int64_t n, int64_t c) {
    const T* plane = call.input + element(call.input_strides, n, c, 0, 0);
    for_each_output(s, [&](int64_t i, int64_t j) {
      const int64_t row = row_origin(s, i);
      const int64_t column = column_origin(s, j);
      const TapRange rows = taps_inside(row, s.dilation_height, s.kernel_height, s.in_height);
      const TapRange columns = taps_inside(column, s.dilation_width, s.kernel_width, s.in_width);
      T best = -std::numeric_limits<T>::infinity();
      int64_t best_tap = rows.begin * s.kernel_width + columns.begin;
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        for (int64_t q = columns.begin; q < columns.end; ++q) {
          const T x = plane[(row + r * s.dilation_height) * call.input_strides.row +
                            (column + q * s.dilation_width) * call.input_strides.column];
          if (x > best || x != x) {
            best = x;
            best_tap = r * s.kernel_width + q;
          }
        }
      }
      const int64_t at = element(call.output_strides, n, c, i, j);
      call.output[at] = best;
      if (call.offsets != nullptr) offsets.set(call.offsets, at, best_tap);
    });
  });
}

template <typename T>
void max_pool2d_backward_reference(const MaxPool2dBackward<T>& call) {
  const Pool2dShape& s = call.shape;
  const Offsets offsets(s);
  const Strides4& gi = call.grad_input_strides;
  for_each_plane(s, [&](int64_t n, int64_t c) {
    T* plane = call.grad_input + element(gi, n, c, 0, 0);
    for (int64_t y = 0; y < s.in_height; ++y)
      for (int64_t x = 0; x < s.in_width; ++x) plane[y * gi.row + x * gi.column] = 0;
    for_each_output(s, [&](int64_t i, int64_t j) {
      const int64_t tap = offsets.get(call.offsets, element(call.offset_strides, n, c, i, j));
      const Position p = tap_position(s, i, j, tap);
      if (p.inside(s))
        plane[p.row * gi.row + p.column * gi.column] +=
            call.grad_output[element(call.grad_output_strides, n, c, i, j)];
    });
  });
}

template <typename T>
void max_pool2d_gather_reference(const MaxPool2dGather<T>& call) {
  const Pool2dShape& s = call.shape;
  const Offsets offsets(s);
  for_each_plane(s, [&](int64_t n, int64_t c) {
    for_each_output(s, [&](int64_t i, int64_t j) {
      const int64_t tap = offsets.get(call.offsets, element(call.offset_strides, n, c, i, j));
      const Position p = tap_position(s, i, j, tap);
      call.output[element(call.output_strides, n, c, i, j)] =
          p.inside(s) ? call.source[element(call.source_strides, n, c, p.row, p.column)] : T(0);
    });
  });
}

void max_pool2d_indices_reference(const MaxPool2dIndices& call) {
  const Pool2dShape& s = call.shape;
  const Offsets offsets(s);
  for_each_plane(s, [&](int64_t n, int64_t c) {
    for_each_output(s, [&](int64_t i, int64_t j) {
      const int64_t tap = offsets.get(call.offsets, element(call.offset_strides, n, c, i, j));
      const Position p = tap_position(s, i, j, tap);
      call.indices[element(call.index_strides, n, c, i, j)] = p.row * s.in_width + p.column;
    });
  });
}

template <typename T>
void avg_pool2d_forward_reference(const AvgPool2dForward<T>& call) {
  const Pool2dShape& s = call.shape;
  const Strides4& in = call.input_strides;
  for_each_plane(s, [&](int64_t n, int64_t c) {
    const T* plane = call.input + element(in, n, c, 0, 0);
    for_each_output(s, [&](int64_t i, int64_t j) {
      const int64_t row = row_origin(s, i);
      const int64_t column = column_origin(s, j);
      const TapRange rows = taps_inside(row, 1, s.kernel_height, s.in_height);
      const TapRange columns = taps_inside(column, 1, s.kernel_width, s.in_width);
      T sum = 0;
      for (int64_t r = rows.begin; r < rows.end; ++r)
        for (int64_t q = columns.begin; q < columns.end; ++q)
          sum += plane[(row + r) * in.row + (column + q) * in.column];
      call.output[element(call.output_strides, n, c, i, j)] =
          sum / static_cast<T>(divisor_of(s, call.divisor, i, j));
    });
  });
}

template <typename T>
void avg_pool2d_backward_reference(const AvgPool2dBackward<T>& call) {
  const Pool2dShape& s = call.shape;
  const Strides4& gi = call.grad_input_strides;
  for_each_plane(s, [&](int64_t n, int64_t c) {
    T* plane = call.grad_input + element(gi, n, c, 0, 0);
    for (int64_t y = 0; y < s.in_height; ++y)
      for (int64_t x = 0; x < s.in_width; ++x) plane[y * gi.row + x * gi.column] = 0;
    for_each_output(s, [&](int64_t i, int64_t j) {
      const int64_t row = row_origin(s, i);
      const int64_t column = column_origin(s, j);
      const TapRange rows = taps_inside(row, 1, s.kernel_height, s.in_height);
      const TapRange columns = taps_inside(column, 1, s.kernel_width, s.in_width);
      const T share = call.grad_output[element(call.grad_output_strides, n, c, i, j)] /
                      static_cast<T>(divisor_of(s, call.divisor, i, j));
      for (int64_t r = rows.begin; r < rows.end; ++r)
        for (int64_t q = columns.begin; q < columns.end; ++q)
          plane[(row + r) * gi.row + (column + q) * gi.column] += share;
    });
  });
}

void divide_plane(const AvgPool2dBackward<float>& call, int64_t plane, float* scaled,
                  Strides4 scaled_strides) {
  const Pool2dShape& s = call.shape;
  const int64_t n = plane / s.channels;
  const int64_t c = plane % s.channels;
  for_each_output(s, [&](int64_t i, int64_t j) {
    scaled[element(scaled_strides, n, c, i, j)] =
        call.grad_output[element(call.grad_output_strides, n, c, i, j)] /
        static_cast<float>(divisor_of(s, call.divisor, i, j));
  });
}

template void max_pool2d_forward_reference(const MaxPool2dForward<float>&);
template void max_pool2d_forward_reference(const MaxPool2dForward<double>&);
template void max_pool2d_backward_reference(const MaxPool2dBackward<float>&);
template void max_pool2d_backward_reference(const MaxPool2dBackward<double>&);
template void max_pool2d_gather_reference(const MaxPool2dGather<float>&);
template void max_pool2d_gather_reference(const MaxPool2dGather<double>&);
template void max_pool2d_gather_reference(const MaxPool2dGather<uint16_t>&);
template void avg_pool2d_forward_reference(const AvgPool2dForward<float>&);
template void avg_pool2d_forward_reference(const AvgPool2dForward<double>&);
template void avg_pool2d_backward_reference(const AvgPool2dBackward<float>&);
template void avg_pool2d_backward_reference(const AvgPool2dBackward<double>&);

}  // namespace fastconv::cpu
