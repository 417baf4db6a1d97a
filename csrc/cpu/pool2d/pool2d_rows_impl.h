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

// taps[q] = input columns p[q], p[q + S], ...; without Masked all of them exist.
template <int K, int S, bool Masked>
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

// Rows are read in pairs, back and forth, which the hardware's prefetching of streams does not
// follow well: without a hint, windows of stride 2 come out of memory at 40 to 60 % of the speed.
template <int S>
[[gnu::always_inline]] inline void prefetch_row(const float* p) {
  constexpr int64_t kAhead = 2048;
#pragma GCC unroll 4
  for (int i = 0; i < S; ++i) __builtin_prefetch(p + i * kLanes + kAhead);
}

// One output row: its first window, of which taps `rows` exist, and its first output.
template <class Pool>
struct OutputRow {
  const float* first;
  TapRange rows;
  typename Pool::Row data;
  int64_t element;
};

// Row r of a window. Where the policy allows, the taps of a row are joined first and then the rows:
// a chain of comparisons half as long.
template <int K, class Pool>
[[gnu::always_inline]] inline void add_tap_row(const Pool& pool, typename Pool::State& state,
                                               Simd::Reg (&taps)[K], int r) {
  constexpr bool kJoins = requires(typename Pool::State s) { pool.join(s, s); };
  if constexpr (kJoins) {
    if (r > 0) {
      typename Pool::State row = pool.start_at(taps[0], r * K);
#pragma GCC unroll 3
      for (int q = 1; q < K; ++q) pool.add(row, taps[q], r * K + q);
      return pool.join(state, row);
    }
  }
#pragma GCC unroll 3
  for (int q = 0; q < K; ++q) {
    if (r == 0 && q == 0) {
      pool.begin(state, taps[0]);
    } else {
      pool.add(state, taps[q], r * K + q);
    }
  }
}

// Outputs [j, j + count) of a row. Always inlined: a call would send the state through memory.
template <int K, int S, bool Masked, class Pool>
[[gnu::always_inline]] inline void pool_fixed_vector(const Pool& pool, const OutputRow<Pool>& row,
                                                     const TapMasks<K, S>* masks,
                                                     typename Pool::Columns columns, int64_t j,
                                                     int64_t count) {
  const int64_t pitch = pool.call.input_strides.row;
  const float* first = row.first + j * S;
  const Simd::Reg fill = Pool::fill();
  typename Pool::State state = pool.start(row.data, columns);
  Simd::Reg taps[K];
  if (row.rows.begin == 0 && row.rows.end == K) {
#pragma GCC unroll 3
    for (int r = 0; r < K; ++r) {
      if constexpr (S == 2) {
        if (r >= K - S) prefetch_row<S>(first + r * pitch);
      }
      load_taps<K, S, Masked>(first + r * pitch, masks, fill, taps);
      add_tap_row<K>(pool, state, taps, r);
    }
  } else {
    for (int64_t r = row.rows.begin; r < row.rows.end; ++r) {
      load_taps<K, S, Masked>(first + r * pitch, masks, fill, taps);
#pragma GCC unroll 3
      for (int q = 0; q < K; ++q) pool.add(state, taps[q], r * K + q);
    }
  }
  pool.store(state, row.data, columns, row.element + j, count);
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
    inner_begin = j;
    while (j < s.out_width && is_inner(j)) j += kLanes;
    inner_end = j;
    for (; j < s.out_width; j += kLanes) add_edge(j);
  }

  Edge edges[kMax];
  int count = 0;
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
    const OutputRow<Pool> row{plane + origin * pool.call.input_strides.row - s.padding_width, rows,
                              pool.row(i, rows), element};
    for (int64_t j = vectors.inner_begin; j < vectors.inner_end; j += kLanes)
      pool_fixed_vector<K, S, false>(pool, row, static_cast<const TapMasks<K, S>*>(nullptr), inner,
                                     j, kLanes);
    for (int e = 0; e < vectors.count; ++e) {
      const auto& edge = vectors.edges[e];
      pool_fixed_vector<K, S, true>(pool, row, &edge.masks, edge.columns, edge.output, edge.count);
    }
  });
}

// --- 2 x 2 windows of stride 2 on narrow dense planes: several output rows per vector
// -------------

// True when all planes lie one after another and the windows tile them exactly.
inline bool tiled_by_2x2(const Pool2dShape& s, const Strides4& in, const Strides4& out) {
  const auto is_dense = [&](const Strides4& strides, int64_t height, int64_t width) {
    return strides.row == width && strides.channel == height * width &&
           strides.batch == s.channels * height * width;
  };
  return s.in_width == 2 * s.out_width && s.in_height == 2 * s.out_height && s.padding_width == 0 &&
         s.padding_height == 0 && is_dense(in, s.in_height, s.in_width) &&
         is_dense(out, s.out_height, s.out_width);
}

// Loads the first `count` of 4 * kLanes floats; the rest read as zero.
inline void load_parts(const float* p, int64_t count, Simd::Reg parts[4]) {
#pragma GCC unroll 4
  for (int64_t v = 0; v < 4; ++v)
    parts[v] = Simd::load_masked(p + v * kLanes, lanes_in(v * kLanes, count));
}

// Lane l is output l % out_width of row l / out_width of the group; its four taps are picked from
// the group's input rows, at most 4 * kLanes contiguous floats.
template <class Pool>
void pool_packed_2x2(const Pool& pool, RowRange range) {
  const Pool2dShape& s = pool.call.shape;
  const int64_t group = kLanes / s.out_width;
  Simd::Ints index[4];
  for (int64_t t = 0; t < 4; ++t) {
    int32_t position[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t row = 2 * (l / s.out_width) + t / 2;
      const int64_t column = 2 * (l % s.out_width) + t % 2;
      position[l] = l < group * s.out_width ? static_cast<int32_t>(row * s.in_width + column) : 0;
    }
    index[t] = Simd::load_ints(position);
  }
  const typename Pool::Row row_data = pool.row(0, {0, 2});
  const typename Pool::Columns columns = pool.inner_columns();
  for (int64_t row = range.begin; row < range.end; row += group) {
    const int64_t rows = min_of(group, range.end - row);
    Simd::Reg parts[4];
    load_parts(pool.call.input + row * 2 * s.in_width, rows * 2 * s.in_width, parts);
    typename Pool::State state = pool.start(row_data, columns);
    pool.begin(state, Simd::pick(parts, index[0]));
#pragma GCC unroll 3
    for (int t = 1; t < 4; ++t) pool.add(state, Simd::pick(parts, index[t]), t);
    pool.store(state, row_data, columns, row * s.out_width, rows * s.out_width);
  }
}

template <class Pool>
void pool_2x2s2(const Pool& pool, RowRange range) {
  const Pool2dShape& s = pool.call.shape;
  if (2 * s.out_width <= kLanes &&
      tiled_by_2x2(s, pool.call.input_strides, pool.call.output_strides))
    return pool_packed_2x2(pool, range);
  pool_fixed_rows<2, 2>(pool, range);
}

}  // namespace
