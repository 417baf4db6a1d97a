// SPDX-License-Identifier: MIT
// Depthwise kernels, written once over Simd; instantiated by depthwise_ukernels_<isa>.cpp.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/conv2d/depthwise_ukernels.h"

namespace {

using fastconv::cpu::DepthwiseImage;
using fastconv::cpu::DepthwisePlane;
using fastconv::cpu::DepthwiseTaps;
using fastconv::cpu::kMaxDepthwiseTaps;

constexpr int64_t kLanes = Simd::kLanes;

inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Floats that one vector of outputs spans in an input row.
template <int Step>
constexpr int64_t kSpan = Step * kLanes;

// kLanes floats of a row, Step apart. All kSpan<Step> floats exist.
template <int Step>
inline Simd::Reg load_inside(const float* p) {
  if constexpr (Step == 1) {
    return Simd::load(p);
  } else {
    return Simd::even_lanes(Simd::load(p), Simd::load(p + kLanes));
  }
}

// Which floats of a vector's span exist, for one kernel column: the first and, with Step 2, the
// second kLanes of them.
struct EdgeMask {
  Simd::Mask part[2];
};

// Columns [column, column + kSpan<Step>) of a row of `width`.
template <int Step>
inline EdgeMask edge_mask(int64_t column, int64_t width) {
  EdgeMask mask;
  for (int64_t p = 0; p < Step; ++p) {
    const int64_t first = column + p * kLanes;
    const int64_t begin = min_of(max_of(-first, 0), kLanes);
    mask.part[p] = Simd::mask_range(begin, max_of(begin, min_of(width - first, kLanes)));
  }
  return mask;
}

// As load_inside; what the mask leaves out is not touched and reads as zero.
template <int Step>
inline Simd::Reg load_edge(const float* p, const EdgeMask& mask) {
  if constexpr (Step == 1) {
    return Simd::load_masked(p, mask.part[0]);
  } else {
    return Simd::even_lanes(Simd::load_masked(p, mask.part[0]),
                            Simd::load_masked(p + kLanes, mask.part[1]));
  }
}

// Output vectors [begin, end) of a row whose taps all lie inside the row.
struct InsideVectors {
  int64_t begin;
  int64_t end;
};

template <int Step>
inline InsideVectors inside_vectors(const DepthwiseTaps& taps, const DepthwisePlane& plane) {
  int64_t left = taps.columns[0], right = taps.columns[0];
  for (int64_t q = 1; q < taps.column_count; ++q) {
    left = min_of(left, taps.columns[q]);
    right = max_of(right, taps.columns[q]);
  }
  const int64_t begin = left >= 0 ? 0 : (-left + kSpan<Step> - 1) / kSpan<Step>;
  const int64_t room = plane.in_width - right;  // vector v needs (v + 1) * span <= room
  const int64_t end = room < 0 ? 0 : min_of(room / kSpan<Step>, plane.out_width / kLanes);
  return {begin, max_of(begin, end)};
}

inline const float* input_row(const DepthwiseTaps& taps, const DepthwisePlane& plane, int64_t i,
                              int64_t r) {
  const int64_t row = i * taps.row_step + taps.rows[r];
  return row < 0 || row >= plane.in_height ? plane.zeros : plane.input + row * plane.in_row;
}

// The masks of the vectors outside InsideVectors are the same in every row. Those of the first
// kMaxKept are worked out once per plane, which covers all but extreme dilations.
template <int Step>
class EdgeMasks {
 public:
  static constexpr int64_t kMaxKept = 4;

  // `limit(q)`: columns past it do not count for kernel column q, whatever the row holds.
  template <typename Limit>
  EdgeMasks(const DepthwiseTaps& taps, InsideVectors inside, int64_t vectors, const Limit& limit)
      : inside_(inside) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t slot = slot_of(v);
      if (v < inside.begin || v >= inside.end)
        if (slot < kMaxKept) fill(taps, v, limit, kept_[slot]);
    }
  }

  template <typename Limit>
  const EdgeMask* of(const DepthwiseTaps& taps, int64_t v, const Limit& limit) {
    const int64_t slot = slot_of(v);
    if (slot < kMaxKept) return kept_[slot];
    fill(taps, v, limit, fresh_);
    return fresh_;
  }

 private:
  int64_t slot_of(int64_t v) const {
    return v < inside_.begin ? v : v - (inside_.end - inside_.begin);
  }

  template <typename Limit>
  static void fill(const DepthwiseTaps& taps, int64_t v, const Limit& limit, EdgeMask* masks) {
    for (int64_t q = 0; q < taps.column_count; ++q)
      masks[q] = edge_mask<Step>(v * kSpan<Step> + taps.columns[q], limit(q));
  }

  InsideVectors inside_;
  EdgeMask kept_[kMaxKept][kMaxDepthwiseTaps];
  EdgeMask fresh_[kMaxDepthwiseTaps];
};

// One output vector; Rows x Columns taps, or the run-time counts where they are 0. `masks` is
// nullptr for a vector that lies inside.
template <int Rows, int Columns, int Step, bool Inside>
inline Simd::Reg tap_sum(const DepthwiseTaps& taps, const float* const* rows, int64_t column,
                         const EdgeMask* masks, const Simd::Reg* weights, Simd::Reg sum) {
  const int64_t row_count = Rows > 0 ? Rows : taps.row_count;
  const int64_t column_count = Columns > 0 ? Columns : taps.column_count;
#pragma GCC unroll 8
  for (int64_t r = 0; r < row_count; ++r)
#pragma GCC unroll 8
    for (int64_t q = 0; q < column_count; ++q) {
      const float* p = rows[r] + column + taps.columns[q];
      const auto x = Inside ? load_inside<Step>(p) : load_edge<Step>(p, masks[q]);
      sum = Simd::fma(weights[r * column_count + q], x, sum);
    }
  return sum;
}

template <int Rows, int Columns, int Step>
void run_plane_taps(const DepthwiseTaps& taps, const DepthwisePlane& plane, const float* weights,
                    float bias) {
  Simd::Reg w[Rows > 0 ? Rows * Columns : kMaxDepthwiseTaps];
  const int64_t tap_count = taps.row_count * taps.column_count;
  for (int64_t t = 0; t < tap_count; ++t) w[t] = Simd::set1(weights[t]);
  const Simd::Reg start = Simd::set1(bias);
  const InsideVectors inside = inside_vectors<Step>(taps, plane);
  const int64_t vectors = (plane.out_width + kLanes - 1) / kLanes;
  const auto limit = [&](int64_t) { return plane.in_width; };
  EdgeMasks<Step> edges(taps, inside, vectors, limit);
  const int64_t last = plane.out_width - (vectors - 1) * kLanes;
  for (int64_t i = 0; i < plane.out_height; ++i) {
    const float* rows[Rows > 0 ? Rows : kMaxDepthwiseTaps];
    for (int64_t r = 0; r < taps.row_count; ++r) rows[r] = input_row(taps, plane, i, r);
    float* out = plane.output + i * plane.out_row;
    for (int64_t v = 0; v < vectors; ++v) {
      if (v >= inside.begin && v < inside.end) {
        Simd::store(out + v * kLanes, tap_sum<Rows, Columns, Step, true>(
                                          taps, rows, v * kSpan<Step>, nullptr, w, start));
        continue;
      }
      const auto sum = tap_sum<Rows, Columns, Step, false>(taps, rows, v * kSpan<Step>,
                                                           edges.of(taps, v, limit), w, start);
      Simd::store_masked(out + v * kLanes, sum, Simd::mask_first(v + 1 < vectors ? kLanes : last));
    }
  }
}

template <int Step>
void run_plane_step(const DepthwiseTaps& taps, const DepthwisePlane& plane, const float* weights,
                    float bias) {
  if (taps.row_count == 3 && taps.column_count == 3)
    return run_plane_taps<3, 3, Step>(taps, plane, weights, bias);
  if (taps.row_count == 5 && taps.column_count == 5)
    return run_plane_taps<5, 5, Step>(taps, plane, weights, bias);
  run_plane_taps<0, 0, Step>(taps, plane, weights, bias);
}

void run_plane(const DepthwiseTaps& taps, const DepthwisePlane& plane, const float* weights,
               float bias) {
  if (taps.column_step == 1) return run_plane_step<1>(taps, plane, weights, bias);
  run_plane_step<2>(taps, plane, weights, bias);
}

// Products of Rows kernel rows from `first` on; all Columns columns of them.
template <int Rows, int Columns, int Step>
void add_products(const DepthwiseTaps& taps, const DepthwisePlane& plane, int64_t first,
                  float* sums, float* totals) {
  Simd::Reg acc[Rows][Columns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < Columns; ++q) acc[r][q] = Simd::zero();
  Simd::Reg total = Simd::zero();
  const InsideVectors inside = inside_vectors<Step>(taps, plane);
  const int64_t vectors = (plane.out_width + kLanes - 1) / kLanes;
  // Past the last output both factors must vanish: zero times infinity is not zero.
  const auto limit = [&](int64_t q) {
    return min_of(plane.in_width, (plane.out_width - 1) * Step + taps.columns[q] + 1);
  };
  EdgeMasks<Step> edges(taps, inside, vectors, limit);
  const int64_t last = plane.out_width - (vectors - 1) * kLanes;
  for (int64_t i = 0; i < plane.out_height; ++i) {
    const float* rows[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) rows[r] = input_row(taps, plane, i, first + r);
    const float* grad = plane.output + i * plane.out_row;
    for (int64_t v = 0; v < vectors; ++v) {
      const bool whole = v >= inside.begin && v < inside.end;
      const EdgeMask* masks = whole ? nullptr : edges.of(taps, v, limit);
      const Simd::Mask lanes = Simd::mask_first(v + 1 < vectors ? kLanes : last);
      const auto g = Simd::load_masked(grad + v * kLanes, lanes);
      total = Simd::add(total, g);
      if (whole) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
          for (int q = 0; q < Columns; ++q)
            acc[r][q] = Simd::fma(g, load_inside<Step>(rows[r] + v * kSpan<Step> + taps.columns[q]),
                                  acc[r][q]);
      } else {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
          for (int q = 0; q < Columns; ++q)
            acc[r][q] =
                Simd::fma(g, load_edge<Step>(rows[r] + v * kSpan<Step> + taps.columns[q], masks[q]),
                          acc[r][q]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < Columns; ++q) {
      float* sum = sums + ((first + r) * Columns + q) * kLanes;
      Simd::store(sum, Simd::add(Simd::load(sum), acc[r][q]));
    }
  if (first == 0) Simd::store(totals, Simd::add(Simd::load(totals), total));
}

template <int Step>
void add_plane_products_step(const DepthwiseTaps& taps, const DepthwisePlane& plane, float* sums) {
  float* totals = sums + taps.row_count * taps.column_count * kLanes;
  if (taps.row_count == 3 && taps.column_count == 3)
    return add_products<3, 3, Step>(taps, plane, 0, sums, totals);
  if (taps.row_count == 5 && taps.column_count == 5)
    return add_products<5, 5, Step>(taps, plane, 0, sums, totals);
  for (int64_t r = 0; r < taps.row_count; ++r)
    add_products<1, 7, Step>(taps, plane, r, sums, totals);
}

void add_plane_products(const DepthwiseTaps& taps, const DepthwisePlane& plane, float* sums) {
  if (taps.column_step == 1) return add_plane_products_step<1>(taps, plane, sums);
  add_plane_products_step<2>(taps, plane, sums);
}

void interleave(const float* even, const float* odd, int64_t pairs, float* target) {
  int64_t j = 0;
  for (; j + kLanes <= pairs; j += kLanes) {
    Simd::Reg low, high;
    Simd::interleave(Simd::load(even + j), Simd::load(odd + j), &low, &high);
    Simd::store(target + 2 * j, low);
    Simd::store(target + 2 * j + kLanes, high);
  }
  for (; j < pairs; ++j) {
    target[2 * j] = even[j];
    target[2 * j + 1] = odd[j];
  }
}

// Kernel positions whose input lies inside the image, for one output pixel.
struct PixelTaps {
  int64_t count;
  int64_t tap[kMaxDepthwiseTaps];
  int64_t offset[kMaxDepthwiseTaps];
};

inline void find_taps(const DepthwiseTaps& taps, const DepthwiseImage& image, int64_t i, int64_t j,
                      PixelTaps* found) {
  found->count = 0;
  for (int64_t r = 0; r < taps.row_count; ++r) {
    const int64_t row = i * taps.row_step + taps.rows[r];
    if (row < 0 || row >= image.in_height) continue;
    for (int64_t q = 0; q < taps.column_count; ++q) {
      const int64_t column = j * taps.column_step + taps.columns[q];
      if (column < 0 || column >= image.in_width) continue;
      found->tap[found->count] = r * taps.column_count + q;
      found->offset[found->count++] = row * image.in_row + column * image.in_column;
    }
  }
}

// A run of output pixels [begin, end) of one row that all have the same taps at the same offsets
// from their own place. A row is an edge on either side and one long run between them.
template <typename Visit>
inline void for_each_run(const DepthwiseTaps& taps, const DepthwiseImage& image, int64_t i,
                         const Visit& visit) {
  int64_t left = taps.columns[0], right = taps.columns[0];
  for (int64_t q = 1; q < taps.column_count; ++q) {
    left = min_of(left, taps.columns[q]);
    right = max_of(right, taps.columns[q]);
  }
  const int64_t step = taps.column_step;
  const int64_t begin = min_of(left >= 0 ? 0 : (-left + step - 1) / step, image.out_width);
  const int64_t room = image.in_width - right;  // j * step < room
  const int64_t end =
      max_of(begin, min_of(room <= 0 ? 0 : (room + step - 1) / step, image.out_width));
  PixelTaps found;
  for (int64_t j = 0; j < image.out_width;) {
    const int64_t stop = j == begin && begin < end ? end : j + 1;
    find_taps(taps, image, i, j, &found);
    visit(found, j, stop);
    j = stop;
  }
}

// One vector of channels of a run. Nine taps, the common case, keep their weights in registers.
template <int Taps>
inline void run_pixels(const DepthwiseTaps& taps, const DepthwiseImage& image,
                       const PixelTaps& found, const float* weights, Simd::Reg start, int64_t c,
                       Simd::Mask lanes, float* out, int64_t pixels) {
  const int64_t step = taps.column_step * image.in_column;
  const int64_t count = Taps > 0 ? Taps : found.count;
  Simd::Reg w[Taps > 0 ? Taps : kMaxDepthwiseTaps];
  const float* x[Taps > 0 ? Taps : kMaxDepthwiseTaps];
#pragma GCC unroll 16
  for (int64_t t = 0; t < count; ++t) {
    w[t] = Simd::load_masked(weights + found.tap[t] * image.channels + c, lanes);
    x[t] = image.input + found.offset[t] + c;
  }
  const bool whole = image.channels - c >= kLanes;
  for (int64_t j = 0; j < pixels; ++j) {
    auto sum = start;
    if (whole) {
#pragma GCC unroll 16
      for (int64_t t = 0; t < count; ++t) sum = Simd::fma(w[t], Simd::load(x[t] + j * step), sum);
      Simd::store(out + j * image.out_column, sum);
    } else {
#pragma GCC unroll 16
      for (int64_t t = 0; t < count; ++t)
        sum = Simd::fma(w[t], Simd::load_masked(x[t] + j * step, lanes), sum);
      Simd::store_masked(out + j * image.out_column, sum, lanes);
    }
  }
}

void run_image(const DepthwiseTaps& taps, const DepthwiseImage& image, const float* weights,
               const float* bias) {
  for (int64_t i = 0; i < image.out_height; ++i)
    for_each_run(taps, image, i, [&](const PixelTaps& found, int64_t begin, int64_t end) {
      float* out = image.output + i * image.out_row + begin * image.out_column;
      for (int64_t c = 0; c < image.channels; c += kLanes) {
        const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, image.channels - c));
        const auto start = bias == nullptr ? Simd::zero() : Simd::load_masked(bias + c, lanes);
        if (found.count == 9) {
          run_pixels<9>(taps, image, found, weights, start, c, lanes, out + c, end - begin);
        } else {
          run_pixels<0>(taps, image, found, weights, start, c, lanes, out + c, end - begin);
        }
      }
    });
}

// One vector of channels of a run; the sums of nine taps stay in registers. They start from zero
// and are added to the totals at the end: partial sums per run keep the rounding error small.
template <int Taps>
inline void add_pixels(const DepthwiseTaps& taps, const DepthwiseImage& image,
                       const PixelTaps& found, float* sums, int64_t c, Simd::Mask lanes,
                       const float* grad, int64_t pixels) {
  const int64_t step = taps.column_step * image.in_column;
  const int64_t count = Taps > 0 ? Taps : found.count;
  Simd::Reg acc[Taps > 0 ? Taps : kMaxDepthwiseTaps];
  const float* x[Taps > 0 ? Taps : kMaxDepthwiseTaps];
#pragma GCC unroll 16
  for (int64_t t = 0; t < count; ++t) {
    acc[t] = Simd::zero();
    x[t] = image.input + found.offset[t] + c;
  }
  float* totals = sums + taps.row_count * taps.column_count * image.channels + c;
  auto total = Simd::zero();
  const bool whole = image.channels - c >= kLanes;
  for (int64_t j = 0; j < pixels; ++j) {
    const auto g = Simd::load_masked(grad + j * image.out_column, lanes);
    total = Simd::add(total, g);
    if (whole) {
#pragma GCC unroll 16
      for (int64_t t = 0; t < count; ++t)
        acc[t] = Simd::fma(g, Simd::load(x[t] + j * step), acc[t]);
    } else {
#pragma GCC unroll 16
      for (int64_t t = 0; t < count; ++t)
        acc[t] = Simd::fma(g, Simd::load_masked(x[t] + j * step, lanes), acc[t]);
    }
  }
#pragma GCC unroll 16
  for (int64_t t = 0; t < count; ++t) {
    float* sum = sums + found.tap[t] * image.channels + c;
    Simd::store_masked(sum, Simd::add(Simd::load_masked(sum, lanes), acc[t]), lanes);
  }
  Simd::store_masked(totals, Simd::add(Simd::load_masked(totals, lanes), total), lanes);
}

void add_image_products(const DepthwiseTaps& taps, const DepthwiseImage& image, float* sums) {
  for (int64_t i = 0; i < image.out_height; ++i)
    for_each_run(taps, image, i, [&](const PixelTaps& found, int64_t begin, int64_t end) {
      const float* grad = image.output + i * image.out_row + begin * image.out_column;
      for (int64_t c = 0; c < image.channels; c += kLanes) {
        const Simd::Mask lanes = Simd::mask_first(min_of(kLanes, image.channels - c));
        if (found.count == 9) {
          add_pixels<9>(taps, image, found, sums, c, lanes, grad + c, end - begin);
        } else {
          add_pixels<0>(taps, image, found, sums, c, lanes, grad + c, end - begin);
        }
      }
    });
}

}  // namespace
