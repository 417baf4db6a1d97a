// SPDX-License-Identifier: MIT
// Forward pooling where columns are contiguous: one vector holds neighbouring outputs of a row, and
// every tap is a vector of input columns, loaded directly (stride 1), as the even or odd lanes of
// two loads (stride 2), or gathered. Elements outside the input read as the policy's neutral value.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d_policies_impl.h"
#include "cpu/pool2d/pool2d_ukernels.h"

namespace {

using fastconv::cpu::RowRange;

// Calls visit(plane pointer, first element of the output row, output row) for flat output rows.
template <class Call, class Visit>
inline void for_each_output_row(const Call& call, RowRange range, const Visit& visit) {
  const Pool2dShape& s = call.shape;
  int64_t plane = range.begin / s.out_height;
  int64_t i = range.begin % s.out_height;
  for (int64_t row = range.begin; row < range.end; ++plane, i = 0) {
    const int64_t n = plane / s.channels;
    const int64_t c = plane % s.channels;
    const float* input = call.input + n * call.input_strides.batch + c * call.input_strides.channel;
    const int64_t output = n * call.output_strides.batch + c * call.output_strides.channel;
    for (; i < s.out_height && row < range.end; ++i, ++row)
      visit(input, output + i * call.output_strides.row, i);
  }
}

// --- K x K windows of stride 1 or 2 without dilation, K <= 3, padding <= 1 ----------------------

// Which elements of the vectors that load_taps reads lie inside the input row.
template <int K, int S>
struct TapMasks {
  static constexpr int kParts = S == 1 ? K : 2 * ((K + 1) / 2);
  Simd::Mask part[kParts];
};

// First element of part p relative to the first tap of lane 0.
template <int S>
constexpr int64_t part_begin(int p) {
  return S == 1 ? p : 2 * (p / 2) + (p % 2) * kLanes;
}

template <int K, int S>
inline TapMasks<K, S> tap_masks(int64_t column, int64_t width) {
  TapMasks<K, S> masks;
  for (int p = 0; p < TapMasks<K, S>::kParts; ++p)
    masks.part[p] = lanes_in(column + part_begin<S>(p), width);
  return masks;
}

// taps[q] = input columns p[q], p[q + S], ...; `masks` is nullptr when all of them exist.
template <int K, int S>
inline void load_taps(const float* p, const TapMasks<K, S>* masks, Simd::Reg fill,
                      Simd::Reg taps[K]) {
  constexpr int kParts = TapMasks<K, S>::kParts;
  Simd::Reg part[kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const float* from = p + part_begin<S>(i);
    part[i] =
        masks == nullptr ? Simd::load(from) : Simd::load_masked_or(from, masks->part[i], fill);
  }
#pragma GCC unroll 3
  for (int q = 0; q < K; ++q) {
    if constexpr (S == 1) {
      taps[q] = part[q];
    } else {
      const int i = 2 * (q / 2);
      taps[q] = q % 2 == 0 ? Simd::even_lanes(part[i], part[i + 1])
                           : Simd::odd_lanes(part[i], part[i + 1]);
    }
  }
}

// One vector of outputs; `first` is tap (0, 0) of lane 0.
template <int K, int S, class Pool>
inline void pool_fixed_vector(const Pool& pool, const float* first, TapRange rows,
                              typename Pool::Row row, const TapMasks<K, S>* masks,
                              typename Pool::Columns columns, int64_t element, int64_t count) {
  const int64_t pitch = pool.call.input_strides.row;
  const Simd::Reg fill = Pool::fill();
  typename Pool::State state = pool.start(row, columns);
  const auto add_row = [&](int64_t r) {
    Simd::Reg taps[K];
    load_taps<K, S>(first + r * pitch, masks, fill, taps);
#pragma GCC unroll 3
    for (int q = 0; q < K; ++q) pool.add(state, taps[q], r * K + q);
  };
  if (rows.begin == 0 && rows.end == K) {
#pragma GCC unroll 3
    for (int r = 0; r < K; ++r) add_row(r);
  } else {
    for (int64_t r = rows.begin; r < rows.end; ++r) add_row(r);
  }
  pool.store(state, row, columns, element, count);
}

// The vectors of an output row that are cut by an edge, prepared once for all rows. Only the first
// vector can reach over the left edge, and at most three over the right edge or the row's end.
template <int K, int S, class Pool>
struct EdgeVectors {
  static constexpr int kMax = 6;
  struct Edge {
    int64_t output;
    int64_t count;
    TapMasks<K, S> masks;
    typename Pool::Columns columns;
  };

  explicit EdgeVectors(const Pool& pool) {
    const Pool2dShape& s = pool.call.shape;
    const auto is_inner = [&](int64_t j) {
      const int64_t column = j * S - s.padding_width;
      const int64_t read = part_begin<S>(TapMasks<K, S>::kParts - 1) + kLanes;
      return column >= 0 && column + read <= s.in_width && j + kLanes <= s.out_width;
    };
    const auto add_edge = [&](int64_t j) {
      edges[count++] = {j, min_of(kLanes, s.out_width - j),
                        tap_masks<K, S>(j * S - s.padding_width, s.in_width), pool.columns(j)};
    };
    int64_t j = 0;
    for (; j < s.out_width && !is_inner(j); j += kLanes) add_edge(j);
    left = count;
    inner_begin = j;
    while (j < s.out_width && is_inner(j)) j += kLanes;
    inner_end = j;
    for (; j < s.out_width; j += kLanes) add_edge(j);
  }

  Edge edges[kMax];
  int count = 0;
  int left;
  int64_t inner_begin;
  int64_t inner_end;
};

template <int K, int S, class Pool>
void pool_fixed_rows(const Pool& pool, RowRange range) {
  const Pool2dShape& s = pool.call.shape;
  const EdgeVectors<K, S, Pool> vectors(pool);
  const typename Pool::Columns inner = pool.inner_columns();
  for_each_output_row(pool.call, range, [&](const float* plane, int64_t element, int64_t i) {
    const int64_t origin = i * S - s.padding_height;
    const TapRange rows = taps_inside(origin, 1, K, s.in_height);
    const typename Pool::Row row = pool.row(i, rows);
    const float* first = plane + origin * pool.call.input_strides.row - s.padding_width;
    const auto run_edge = [&](int e) {
      const auto& edge = vectors.edges[e];
      pool_fixed_vector<K, S>(pool, first + edge.output * S, rows, row, &edge.masks, edge.columns,
                              element + edge.output, edge.count);
    };
    for (int e = 0; e < vectors.left; ++e) run_edge(e);
    for (int64_t j = vectors.inner_begin; j < vectors.inner_end; j += kLanes)
      pool_fixed_vector<K, S, Pool>(pool, first + j * S, rows, row, nullptr, inner, element + j,
                                    kLanes);
    for (int e = vectors.left; e < vectors.count; ++e) run_edge(e);
  });
}

// --- Any window --------------------------------------------------------------------------------

// Columns p[0], p[step], ... where p is column `column` of an input row; Step is 1, 2 or 0 (any).
template <int Step, bool Masked>
inline Simd::Reg load_columns(const float* p, int64_t column, int64_t step, int64_t width,
                              Simd::Reg fill) {
  if constexpr (Step == 1) {
    return Masked ? Simd::load_masked_or(p, lanes_in(column, width), fill) : Simd::load(p);
  } else if constexpr (Step == 2) {
    if constexpr (!Masked) return Simd::even_lanes(Simd::load(p), Simd::load(p + kLanes));
    return Simd::even_lanes(
        Simd::load_masked_or(p, lanes_in(column, width), fill),
        Simd::load_masked_or(p + kLanes, lanes_in(column + kLanes, width), fill));
  } else {
    if constexpr (!Masked) return Simd::load_strided_or(p, step, Simd::mask_first(kLanes), fill);
    const TapRange lanes = taps_inside(column, step, kLanes, width);
    const int64_t begin = min_of(lanes.begin, kLanes);
    return Simd::load_strided_or(p, step, Simd::mask_range(begin, max_of(begin, lanes.end)), fill);
  }
}

template <int Step, bool Masked, class Pool>
inline void pool_any_vector(const Pool& pool, const float* first, int64_t column, TapRange rows,
                            typename Pool::Row row, typename Pool::Columns columns, int64_t element,
                            int64_t count) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t pitch = s.dilation_height * pool.call.input_strides.row;
  const Simd::Reg fill = Pool::fill();
  typename Pool::State state = pool.start(row, columns);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t q = 0; q < s.kernel_width; ++q) {
      const int64_t shift = q * s.dilation_width;
      const Simd::Reg x = load_columns<Step, Masked>(first + r * pitch + shift, column + shift,
                                                     s.stride_width, s.in_width, fill);
      pool.add(state, x, r * s.kernel_width + q);
    }
  }
  pool.store(state, row, columns, element, count);
}

template <int Step, class Pool>
void pool_any_rows(const Pool& pool, RowRange range) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t reach = (s.kernel_width - 1) * s.dilation_width +
                        (Step == 2 ? 2 * kLanes : (kLanes - 1) * s.stride_width + 1);
  const typename Pool::Columns inner = pool.inner_columns();
  for_each_output_row(pool.call, range, [&](const float* plane, int64_t element, int64_t i) {
    const int64_t origin = i * s.stride_height - s.padding_height;
    const TapRange rows = taps_inside(origin, s.dilation_height, s.kernel_height, s.in_height);
    const typename Pool::Row row = pool.row(i, rows);
    const float* window_row = plane + origin * pool.call.input_strides.row;
    for (int64_t j = 0; j < s.out_width; j += kLanes) {
      const int64_t column = j * s.stride_width - s.padding_width;
      const int64_t count = min_of(kLanes, s.out_width - j);
      if (count == kLanes && column >= 0 && column + reach <= s.in_width) {
        pool_any_vector<Step, false>(pool, window_row + column, column, rows, row, inner,
                                     element + j, count);
      } else {
        pool_any_vector<Step, true>(pool, window_row + column, column, rows, row, pool.columns(j),
                                    element + j, count);
      }
    }
  });
}

template <class Pool>
void pool_general(const Pool& pool, RowRange range) {
  const int64_t step = pool.call.shape.stride_width;
  if (step == 1) return pool_any_rows<1>(pool, range);
  if (step == 2) return pool_any_rows<2>(pool, range);
  return pool_any_rows<0>(pool, range);
}

}  // namespace
