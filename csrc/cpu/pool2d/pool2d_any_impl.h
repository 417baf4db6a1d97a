// SPDX-License-Identifier: MIT
// Forward pooling of any window where columns are contiguous. As in pool2d_rows_impl.h a vector
// holds neighbouring outputs of a row, unless outputs are few and windows wide: then a vector holds
// neighbouring columns of one window and is reduced at the end. Internal linkage throughout, see
// gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d_policies_impl.h"
#include "cpu/pool2d/pool2d_rows_impl.h"
#include "cpu/pool2d/pool2d_ukernels.h"

namespace {

// How the columns p[0], p[step], ... of a tap reach the lanes.
enum class Columns { kNext, kEvery2nd, kEvery3rd, kEvery4th, kGathered };

constexpr int64_t kMaxPickedStep = 4;  // steps whose lanes lie in 4 * kLanes columns

// One vector of outputs: `first` is tap (0, 0) of lane 0, which lies in input column `column`.
template <class Pool>
struct OutputVector {
  const float* first;
  int64_t column;
  TapRange rows;
  typename Pool::Row row;
  typename Pool::Columns columns;
  int64_t element;
  int64_t count;
};

// Columns p[0], p[step], ... where p is column `column` of an input row.
template <Columns Kind, bool Masked>
inline Simd::Reg load_columns(const float* p, int64_t column, int64_t step, int64_t width,
                              Simd::Reg fill) {
  const auto load = [&](int64_t at) {
    return Masked ? Simd::load_masked_or(p + at, lanes_in(column + at, width), fill)
                  : Simd::load(p + at);
  };
  if constexpr (Kind == Columns::kNext) return load(0);
  if constexpr (Kind == Columns::kEvery2nd) return Simd::even_lanes(load(0), load(kLanes));
  if constexpr (!Masked) return Simd::load_strided_or(p, step, Simd::mask_first(kLanes), fill);
  const TapRange lanes = taps_inside(column, step, kLanes, width);
  const int64_t begin = min_of(lanes.begin, kLanes);
  return Simd::load_strided_or(p, step, Simd::mask_range(begin, max_of(begin, lanes.end)), fill);
}

template <Columns Kind, bool Masked, class Pool>
inline void pool_any_vector(const Pool& pool, const OutputVector<Pool>& v) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t pitch = s.dilation_height * pool.call.input_strides.row;
  const Simd::Reg fill = Pool::fill();
  typename Pool::State state = pool.start(v.row, v.columns);
  for (int64_t r = v.rows.begin; r < v.rows.end; ++r) {
    for (int64_t q = 0; q < s.kernel_width; ++q) {
      const int64_t shift = q * s.dilation_width;
      const Simd::Reg x = load_columns<Kind, Masked>(v.first + r * pitch + shift, v.column + shift,
                                                     s.stride_width, s.in_width, fill);
      pool.add(state, x, r * s.kernel_width + q);
    }
  }
  pool.store(state, v.row, v.columns, v.element, v.count);
}

// Steps 3 and 4. Step neighbouring taps of all lanes lie in the same Step * kLanes columns: they
// are loaded once, and each tap picks its lanes. picks[t] is the place of tap t of such a group.
template <int Step, class Pool>
[[gnu::always_inline]] inline void add_picked(const Pool& pool, typename Pool::State& state,
                                              const float* p, const Simd::Mask inside[Step],
                                              const Simd::Ints picks[Step], int64_t taps,
                                              int64_t first_tap) {
  Simd::Reg parts[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v)
    parts[v] =
        v < Step ? Simd::load_masked_or(p + v * kLanes, inside[v], Pool::fill()) : Pool::fill();
#pragma GCC unroll 4
  for (int t = 0; t < Step; ++t)
    if (t < taps) pool.add(state, Simd::pick(parts, picks[t]), first_tap + t);
}

template <int Step>
inline void find_inside(int64_t column, int64_t width, Simd::Mask inside[Step]) {
  for (int v = 0; v < Step; ++v) inside[v] = lanes_in(column + v * kLanes, width);
}

template <int Step, class Pool>
inline void pool_picked_vector(const Pool& pool, const OutputVector<Pool>& v,
                               const Simd::Ints picks[Step]) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t pitch = s.dilation_height * pool.call.input_strides.row;
  typename Pool::State state = pool.start(v.row, v.columns);
  Simd::Mask inside[Step];
  if (s.kernel_width == Step && s.dilation_width == 1) {
    find_inside<Step>(v.column, s.in_width, inside);
    for (int64_t r = v.rows.begin; r < v.rows.end; ++r)
      add_picked<Step>(pool, state, v.first + r * pitch, inside, picks, Step, r * Step);
  } else {
    const int64_t group = s.dilation_width == 1 ? Step : 1;
    for (int64_t r = v.rows.begin; r < v.rows.end; ++r) {
      for (int64_t q = 0; q < s.kernel_width; q += group) {
        const int64_t shift = q * s.dilation_width;
        find_inside<Step>(v.column + shift, s.in_width, inside);
        add_picked<Step>(pool, state, v.first + r * pitch + shift, inside, picks,
                         min_of(group, s.kernel_width - q), r * s.kernel_width + q);
      }
    }
  }
  pool.store(state, v.row, v.columns, v.element, v.count);
}

template <Columns Kind, class Pool>
void pool_any_rows(const Pool& pool, RowRange range) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t reach = (s.kernel_width - 1) * s.dilation_width +
                        (Kind == Columns::kNext       ? kLanes
                         : Kind == Columns::kEvery2nd ? 2 * kLanes
                                                      : (kLanes - 1) * s.stride_width + 1);
  constexpr int kPickedStep = Kind == Columns::kEvery3rd ? 3 : Kind == Columns::kEvery4th ? 4 : 0;
  Simd::Ints picks[kMaxPickedStep];
  for (int64_t t = 0; t < kPickedStep; ++t) {
    int32_t positions[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) positions[l] = static_cast<int32_t>(l * kPickedStep + t);
    picks[t] = Simd::load_ints(positions);
  }
  // Edges cut the first and the last vector of a row, rarely another one.
  const int64_t last = (s.out_width - 1) / kLanes * kLanes;
  const typename Pool::Columns inner = pool.inner_columns();
  const typename Pool::Columns first_columns = pool.columns(0);
  const typename Pool::Columns last_columns = pool.columns(last);
  for_each_output_row(pool.call, range, [&](const float* plane, int64_t element, int64_t i) {
    const int64_t origin = i * s.stride_height - s.padding_height;
    const TapRange rows = taps_inside(origin, s.dilation_height, s.kernel_height, s.in_height);
    const typename Pool::Row row = pool.row(i, rows);
    const float* window_row = plane + origin * pool.call.input_strides.row;
    for (int64_t j = 0; j < s.out_width; j += kLanes) {
      const int64_t column = j * s.stride_width - s.padding_width;
      const int64_t count = min_of(kLanes, s.out_width - j);
      const bool inside = count == kLanes && column >= 0 && column + reach <= s.in_width;
      const OutputVector<Pool> vector{window_row + column,
                                      column,
                                      rows,
                                      row,
                                      inside      ? inner
                                      : j == 0    ? first_columns
                                      : j == last ? last_columns
                                                  : pool.columns(j),
                                      element + j,
                                      count};
      if constexpr (kPickedStep > 0) {
        pool_picked_vector<kPickedStep>(pool, vector, picks);
      } else if (inside) {
        pool_any_vector<Kind, false>(pool, vector);
      } else {
        pool_any_vector<Kind, true>(pool, vector);
      }
    }
  });
}

// --- Few outputs, wide windows -------------------------------------------------------------------

// Adds `length` neighbouring columns, whose first is tap number `tap`.
template <class Pool>
inline void add_columns(const Pool& pool, typename Pool::State& state, const float* p,
                        int64_t length, int64_t tap) {
  int64_t x = 0;
  for (; x + kLanes <= length; x += kLanes) pool.add_lanes(state, Simd::load(p + x), tap + x);
  if (x < length)
    pool.add_lanes(state, Simd::load_masked_or(p + x, Simd::mask_first(length - x), Pool::fill()),
                   tap + x);
}

// No dilation.
template <class Pool>
void pool_wide_rows(const Pool& pool, RowRange range) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t pitch = pool.call.input_strides.row;
  for_each_output_row(pool.call, range, [&](const float* plane, int64_t element, int64_t i) {
    const int64_t row_origin = i * s.stride_height - s.padding_height;
    const TapRange rows = taps_inside(row_origin, 1, s.kernel_height, s.in_height);
    const typename Pool::Row row = pool.row(i, rows);
    for (int64_t j = 0; j < s.out_width; ++j) {
      const int64_t origin = j * s.stride_width - s.padding_width;
      const TapRange columns = taps_inside(origin, 1, s.kernel_width, s.in_width);
      const float* first = plane + row_origin * pitch + origin + columns.begin;
      typename Pool::State state = pool.start(row, pool.same_column(j));
      for (int64_t r = rows.begin; r < rows.end; ++r)
        add_columns(pool, state, first + r * pitch, columns.end - columns.begin,
                    r * s.kernel_width + columns.begin);
      pool.store_one(state, row, j, element + j);
    }
  });
}

// Compares the instructions that both forms spend on a row of outputs.
inline bool prefers_wide(const Pool2dShape& s) {
  if (s.dilation_height != 1 || s.dilation_width != 1) return false;
  constexpr int64_t kReduce = 25;
  constexpr int64_t kAdd = 4;
  const int64_t load = s.stride_width == 1                ? 1
                       : s.stride_width == 2              ? 3
                       : s.stride_width <= kMaxPickedStep ? 4
                                                          : 25;
  const auto vectors = [](int64_t count) { return (count + kLanes - 1) / kLanes; };
  const int64_t taps = s.kernel_height * s.kernel_width;
  const int64_t wide_vectors = s.kernel_height * vectors(s.kernel_width);
  return s.out_width * (wide_vectors * kAdd + kReduce) <
         vectors(s.out_width) * taps * (load + kAdd);
}

template <class Pool>
void pool_any(const Pool& pool, RowRange range) {
  const int64_t step = pool.call.shape.stride_width;
  if (step == 1) return pool_any_rows<Columns::kNext>(pool, range);
  if (step == 2) return pool_any_rows<Columns::kEvery2nd>(pool, range);
  if (step == 3) return pool_any_rows<Columns::kEvery3rd>(pool, range);
  if (step == 4) return pool_any_rows<Columns::kEvery4th>(pool, range);
  pool_any_rows<Columns::kGathered>(pool, range);
}

// The policy that a wide window needs where it is not the narrow one's.
template <class Pool>
inline const Pool& wide_policy(const Pool& pool) {
  return pool;
}
inline MaxOffsets<int32_t> wide_policy(const MaxValues& pool) {
  return MaxOffsets<int32_t>(pool.call);
}

template <class Pool>
void pool_general(const Pool& pool, RowRange range) {
  if (prefers_wide(pool.call.shape)) return pool_wide_rows(wide_policy(pool), range);
  pool_any(pool, range);
}

}  // namespace
