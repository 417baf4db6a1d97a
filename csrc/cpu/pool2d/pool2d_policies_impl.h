// SPDX-License-Identifier: MIT
// What a forward pooling kernel does with the taps it loads: keep the maximum, keep it with its tap
// number, or sum. The loops in pool2d_rows_impl.h and pool2d_channels_impl.h are templates over
// these. A policy offers
//   Row      what one output row needs,             row(output_row, tap rows inside the input)
//   Columns  what a vector of outputs needs:        columns(j) lanes are outputs j, j + 1, ...
//            same_column(j) all lanes are output j, inner_columns() no window is cut
//   State    start(), add() once per tap in row-major order, store() of the first `count` lanes;
//            begin() may stand in for the first add(); where taps may be joined in groups,
//            start_at() for the first tap of a group and join() with a group that comes later
// and, where all lanes belong to one output and hold neighbouring columns,
//   add_lanes() with the tap number of lane 0, store_one()
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d.h"
#include "cpu/pool2d/pool2d_window.h"

namespace {

using fastconv::Pool2dShape;
using fastconv::Strides4;
using fastconv::cpu::AvgDivisor;
using fastconv::cpu::AvgPool2dForward;
using fastconv::cpu::MaxPool2dForward;

constexpr int64_t kLanes = Simd::kLanes;

// Lanes l with 0 <= first + l < size.
inline Simd::Mask lanes_in(int64_t first, int64_t size) {
  const int64_t begin = clamp_to(-first, 0, kLanes);
  return Simd::mask_range(begin, clamp_to(size - first, begin, kLanes));
}

// With Stream, past the caches: all lanes count, and p is aligned.
template <bool Stream = false>
inline void store_lanes(float* p, Simd::Reg x, int64_t count) {
  if constexpr (Stream) {
    Simd::stream(p, x);
  } else if (count == kLanes) {
    Simd::store(p, x);
  } else {
    Simd::store_masked(p, x, Simd::mask_first(count));
  }
}

struct MaxValues {
  using Call = MaxPool2dForward<float>;
  struct Row {};
  struct Columns {};
  using State = Simd::Reg;

  explicit MaxValues(const Call& c) : call(c) {}

  static Simd::Reg fill() { return Simd::set1(-__builtin_inff()); }
  Row row(int64_t, TapRange) const { return {}; }
  Columns columns(int64_t) const { return {}; }
  Columns same_column(int64_t) const { return {}; }
  Columns inner_columns() const { return {}; }
  State start(Row, Columns) const { return fill(); }
  void begin(State& state, Simd::Reg x) const { state = x; }
  void add(State& state, Simd::Reg x, int64_t) const { state = Simd::max_or_nan(x, state); }
  template <bool Stream = false>
  void store(State state, Row, Columns, int64_t element, int64_t count) const {
    store_lanes<Stream>(call.output + element, state, count);
  }

  const Call& call;
};

template <typename Offset>
struct MaxOffsets {
  using Call = MaxPool2dForward<float>;
  struct Row {
    int32_t first_tap;
  };
  using Columns = Simd::Ints;  // the first tap of the window row right of the left edge
  struct State {
    Simd::Reg value;
    Simd::Ints offset;
  };

  explicit MaxOffsets(const Call& c) : call(c), offsets(static_cast<Offset*>(c.offsets)) {}

  static Simd::Reg fill() { return MaxValues::fill(); }
  Row row(int64_t, TapRange rows) const {
    return {static_cast<int32_t>(rows.begin * call.shape.kernel_width)};
  }
  Columns columns(int64_t j) const {
    int32_t taps[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) taps[l] = first_column_tap(j + l);
    return Simd::load_ints(taps);
  }
  Columns same_column(int64_t j) const { return Simd::set1_int(first_column_tap(j)); }
  Columns inner_columns() const { return Simd::set1_int(0); }
  State start(Row row, Columns columns) const {
    return {fill(), Simd::add_int(Simd::set1_int(row.first_tap), columns)};
  }
  void begin(State& state, Simd::Reg x) const { state.value = x; }
  void add(State& state, Simd::Reg x, int64_t tap) const { join(state, start_at(x, tap)); }
  State start_at(Simd::Reg x, int64_t tap) const {
    return {x, Simd::set1_int(static_cast<int32_t>(tap))};
  }
  void join(State& state, const State& later) const {
    const Simd::Mask stays = Simd::not_greater_nor_nan(later.value, state.value);
    state.value = Simd::select(stays, state.value, later.value);
    state.offset = Simd::select_int(stays, state.offset, later.offset);
  }
  template <bool Stream = false>
  void store(const State& state, Row, Columns, int64_t element, int64_t count) const {
    store_lanes<Stream>(call.output + element, state.value, count);
    Simd::store_first(offsets + element, state.offset, count);
  }

  void add_lanes(State& state, Simd::Reg x, int64_t first_tap) const {
    const Simd::Mask wins = Simd::greater_or_nan(x, state.value);
    const Simd::Ints taps =
        Simd::add_int(Simd::lane_numbers(), Simd::set1_int(static_cast<int32_t>(first_tap)));
    state.value = Simd::select(wins, x, state.value);
    state.offset = Simd::select_int(wins, taps, state.offset);
  }
  // Also serves calls without offsets: which of two equal zeros came first shows in the sign.
  void store_one(const State& state, Row, int64_t, int64_t element) const {
    int32_t tap = 0;
    Simd::first_maximum(state.value, state.offset, call.output + element, &tap);
    if (offsets != nullptr) offsets[element] = static_cast<Offset>(tap);
  }

  int32_t first_column_tap(int64_t j) const {
    const Pool2dShape& s = call.shape;
    const int64_t origin = j * s.stride_width - s.padding_width;
    return static_cast<int32_t>(
        taps_inside(origin, s.dilation_width, s.kernel_width, s.in_width).begin);
  }

  const Call& call;
  Offset* offsets;
};

struct Averages {
  using Call = AvgPool2dForward<float>;
  struct Row {
    float count;
  };
  using Columns = Simd::Reg;  // counts along the row; the divisor is the product of both counts
  using State = Simd::Reg;

  explicit Averages(const Call& c) : call(c) {}

  static Simd::Reg fill() { return Simd::zero(); }
  Row row(int64_t i, TapRange) const {
    const Pool2dShape& s = call.shape;
    const AvgDivisor& d = call.divisor;
    if (d.divisor_override != 0) return {static_cast<float>(d.divisor_override)};
    return {static_cast<float>(counted_taps(i * s.stride_height - s.padding_height, s.kernel_height,
                                            s.in_height, s.padding_height, d.count_include_pad))};
  }
  Columns columns(int64_t j) const {
    float counts[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) counts[l] = column_count(j + l);
    return Simd::load(counts);
  }
  Columns same_column(int64_t j) const { return Simd::set1(column_count(j)); }
  Columns inner_columns() const {
    return Simd::set1(
        call.divisor.divisor_override != 0 ? 1.0f : static_cast<float>(call.shape.kernel_width));
  }
  State start(Row, Columns) const { return Simd::zero(); }
  void begin(State& state, Simd::Reg x) const { state = Simd::add(state, x); }
  void add(State& state, Simd::Reg x, int64_t) const { state = Simd::add(state, x); }
  template <bool Stream = false>
  void store(State state, Row row, Columns columns, int64_t element, int64_t count) const {
    const Simd::Reg divisor = Simd::mul(Simd::set1(row.count), columns);
    store_lanes<Stream>(call.output + element, Simd::div(state, divisor), count);
  }

  void add_lanes(State& state, Simd::Reg x, int64_t) const { state = Simd::add(state, x); }
  void store_one(State state, Row row, int64_t j, int64_t element) const {
    call.output[element] = Simd::reduce_add(state) / (row.count * column_count(j));
  }

  // Lanes past the last output, whose windows do not exist, count 1.
  float column_count(int64_t j) const {
    const Pool2dShape& s = call.shape;
    if (call.divisor.divisor_override != 0 || j >= s.out_width) return 1.0f;
    return static_cast<float>(counted_taps(j * s.stride_width - s.padding_width, s.kernel_width,
                                           s.in_width, s.padding_width,
                                           call.divisor.count_include_pad));
  }

  const Call& call;
};

}  // namespace
