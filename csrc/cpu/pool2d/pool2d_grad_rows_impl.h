// SPDX-License-Identifier: MIT
// Backward pooling where columns are contiguous. Gather form: a vector of neighbouring inputs adds
// what each window that holds them gives, so every input is written once, nothing is zero-filled or
// scattered, and windows add in row-major order as torch does. Windows too large or too irregular
// for that scatter into rows that no other thread touches. Internal linkage throughout, see
// gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d_grad_policies_impl.h"
#include "cpu/pool2d/pool2d_policies_impl.h"
#include "cpu/pool2d/pool2d_rows_impl.h"

namespace {

using fastconv::cpu::RowRange;

// Calls visit(n, c, y, row pointer) for flat rows of grad_input.
template <class Grad, class Visit>
inline void for_each_input_row(const Grad& grad, RowRange range, const Visit& visit) {
  const Pool2dShape& s = grad.call.shape;
  const Strides4& gi = grad.call.grad_input_strides;
  int64_t plane = range.begin / s.in_height;
  int64_t y = range.begin % s.in_height;
  for (int64_t row = range.begin; row < range.end; ++plane, y = 0) {
    const int64_t n = plane / s.channels;
    const int64_t c = plane % s.channels;
    for (; y < s.in_height && row < range.end; ++y, ++row)
      visit(n, c, y, grad.call.grad_input + (element_of(gi, n, c, y, 0) - grad.call.first_element));
  }
}

// --- Stride 1 or 2, no dilation: gather ----------------------------------------------------------

// A vector of inputs is S registers: with stride 2 the inputs whose padded column is even and those
// whose is odd. `base` is padded column / S of lane 0; window base - d holds the lanes at tap
// d * S (+ 1 for the odd ones). kShifts distances d matter.
//
// The kernels of fixed windows begin pairs of inputs at column 0 for every padding, because stores
// that cross cache lines cost twice: with Phase 1, for odd paddings of stride 2, register p holds
// the padded columns S * (base + lane) + p + 1, and distances are counted from base + 1.
template <int S>
inline int64_t shifts_of(int64_t kernel) {
  return S == 1 ? kernel : (kernel + 1) / 2;
}

// Which windows exist and which inputs exist, for one vector.
template <int S, int MaxShifts>
struct GradEdge {
  int64_t base;
  int64_t begin[MaxShifts];
  int64_t end[MaxShifts];
  Simd::Mask windows[MaxShifts];
  Simd::Mask inputs[S];
};

template <int S, int Shifts>
inline GradEdge<S, Shifts> grad_edge(int64_t base, int64_t phase, const Pool2dShape& s) {
  GradEdge<S, Shifts> edge;
  edge.base = base;
  for (int d = 0; d < Shifts; ++d) {
    const int64_t window = base + phase - d;
    edge.begin[d] = clamp_to(-window, 0, kLanes);
    edge.end[d] = clamp_to(s.out_width - window, edge.begin[d], kLanes);
    edge.windows[d] = Simd::mask_range(edge.begin[d], edge.end[d]);
  }
  for (int p = 0; p < S; ++p)
    edge.inputs[p] = lanes_in(base * S + phase - s.padding_width + p * kLanes, s.in_width);
  return edge;
}

template <int S, bool Masked>
inline void store_inputs(float* target, Simd::Reg (&sum)[S], const Simd::Mask* inputs) {
  if constexpr (S == 2) Simd::interleave(sum[0], sum[1], &sum[0], &sum[1]);
#pragma GCC unroll 2
  for (int p = 0; p < S; ++p) {
    if constexpr (Masked) {
      Simd::store_masked(target + p * kLanes, sum[p], inputs[p]);
    } else {
      Simd::store(target + p * kLanes, sum[p]);
    }
  }
}

// One row of inputs and the rows of windows that hold it, upmost first. The row is row R of the
// upmost window, R - S of the next one, and so on: constants of the loops below.
template <int K, int S, class Grad>
struct InputRow {
  static constexpr int kMaxWindows = (K + S - 1) / S;

  typename Grad::Source source[kMaxWindows];
  float* target;  // column 0 of grad_input's row
};

template <int K, int S, int Phase>
constexpr int kGradShifts = (K + S - 1 + Phase) / S;

template <int K, int S, int Phase, int R, int Windows, bool Masked, class Grad>
[[gnu::always_inline]] inline void grad_fixed_vector(
    const Grad& grad, const InputRow<K, S, Grad>& row, int64_t base,
    const GradEdge<S, kGradShifts<K, S, Phase>>* edge) {
  constexpr int kShifts = kGradShifts<K, S, Phase>;
  Simd::Reg sum[S];
  for (int p = 0; p < S; ++p) sum[p] = Simd::zero();
#pragma GCC unroll 3
  for (int i = 0; i < Windows; ++i) {
    const auto source = row.source[i];
    // At the first of the rows that read these windows.
    if (R - i * S == 0) grad.template prefetch<1>(grad.advance(source, base));
#pragma GCC unroll 3
    for (int d = kShifts - 1; d >= 0; --d) {
#pragma GCC unroll 2
      for (int p = 0; p < S; ++p) {
        const int q = d * S + p - Phase;
        if (q < 0 || q >= K) continue;
        const Simd::Ints tap = grad.tap((R - i * S) * K + q);
        const int64_t window = base + Phase - d;
        sum[p] = Masked ? grad.add_range(sum[p], source, window, tap, edge->begin[d], edge->end[d],
                                         edge->windows[d])
                        : grad.add_all(sum[p], source, window, tap);
      }
    }
  }
  for (int p = 0; p < S; ++p) sum[p] = grad.finish(sum[p]);
  store_inputs<S, Masked>(row.target + base * S + Phase - grad.call.shape.padding_width, sum,
                          Masked ? edge->inputs : nullptr);
}

// The vectors of an input row that an edge cuts, prepared once for all rows; few for the same
// reason as in EdgeVectors.
template <int K, int S, int Phase>
struct GradVectors {
  static constexpr int kMax = 6;
  static constexpr int kShifts = kGradShifts<K, S, Phase>;

  explicit GradVectors(const Pool2dShape& s) {
    const int64_t end = (s.in_width + s.padding_width - Phase + S - 1) / S;
    const auto is_inner = [&](int64_t base) {
      const int64_t column = base * S + Phase - s.padding_width;
      const int64_t last = base + Phase;  // window of lane 0; the first is kShifts - 1 before it
      return column >= 0 && column + S * kLanes <= s.in_width && last >= kShifts - 1 &&
             last + kLanes <= s.out_width;
    };
    int64_t base = (s.padding_width - Phase) / S;
    for (; base < end && !is_inner(base); base += kLanes)
      edges[count++] = grad_edge<S, kShifts>(base, Phase, s);
    inner_begin = base;
    while (base < end && is_inner(base)) base += kLanes;
    inner_end = base;
    for (; base < end; base += kLanes) edges[count++] = grad_edge<S, kShifts>(base, Phase, s);
  }

  GradEdge<S, kShifts> edges[kMax];
  int count = 0;
  int64_t inner_begin;
  int64_t inner_end;
};

template <int R, int Windows, int K, int S, int Phase, class Grad>
void grad_fixed_row(const Grad& grad, const InputRow<K, S, Grad>& row,
                    const GradVectors<K, S, Phase>& vectors) {
  for (int64_t base = vectors.inner_begin; base < vectors.inner_end; base += kLanes)
    grad_fixed_vector<K, S, Phase, R, Windows, false, Grad>(grad, row, base, nullptr);
  for (int e = 0; e < vectors.count; ++e)
    grad_fixed_vector<K, S, Phase, R, Windows, true>(grad, row, vectors.edges[e].base,
                                                     &vectors.edges[e]);
}

// Picks the loop for a row that `windows` windows hold, as row `r` of the upmost.
template <int R, int Windows, int K, int S, int Phase, class Grad>
inline void grad_any_row(const Grad& grad, const InputRow<K, S, Grad>& row,
                         const GradVectors<K, S, Phase>& vectors, int64_t r, int64_t windows) {
  if (windows == 0) return grad_fixed_row<0, 0>(grad, row, vectors);
  if (r == R && windows == Windows) return grad_fixed_row<R, Windows>(grad, row, vectors);
  if constexpr (Windows > 1) {
    grad_any_row<R, Windows - 1>(grad, row, vectors, r, windows);
  } else if constexpr (R > 0) {
    grad_any_row<R - 1, (R - 1) / S + 1>(grad, row, vectors, r, windows);
  }
}

template <int K, int S, int Phase, class Grad>
void grad_phased_rows(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const Strides4& gi = grad.call.grad_input_strides;
  const GradVectors<K, S, Phase> vectors(s);
  int64_t plane = range.begin / s.in_height;
  int64_t y = range.begin % s.in_height;
  for (int64_t flat = range.begin; flat < range.end; ++plane, y = 0) {
    const int64_t n = plane / s.channels;
    const int64_t c = plane % s.channels;
    const auto first = grad.source(n, c, 0, 0);
    float* target = grad.call.grad_input + (element_of(gi, n, c, 0, 0) - grad.call.first_element);
    for (; y < s.in_height && flat < range.end; ++y, ++flat) {
      const int64_t padded = y + s.padding_height;
      const TapRange over = windows_over(padded, K, S, s.out_height);
      InputRow<K, S, Grad> row;
      row.target = target + y * gi.row;
      for (int64_t i = over.begin; i < over.end; ++i)
        row.source[i - over.begin] = grad.down(first, i);
      grad_any_row<K - 1, (K - 1) / S + 1>(grad, row, vectors, padded - over.begin * S,
                                           max_of(over.end - over.begin, 0));
    }
  }
}

template <int K, int S, class Grad>
void grad_fixed_rows(const Grad& grad, RowRange range) {
  if constexpr (S == 2) {
    if (grad.call.shape.padding_width % 2 == 1) return grad_phased_rows<K, S, 1>(grad, range);
  }
  grad_phased_rows<K, S, 0>(grad, range);
}

// As grad_fixed_rows for any kernel size.
template <int S, class Grad>
void grad_gather_rows(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const int64_t shifts = shifts_of<S>(s.kernel_width);
  for_each_input_row(grad, range, [&](int64_t n, int64_t c, int64_t y, float* target) {
    const int64_t padded = y + s.padding_height;
    const TapRange windows = windows_over(padded, s.kernel_height, s.stride_height, s.out_height);
    for (int64_t base = s.padding_width / S; base * S < s.in_width + s.padding_width;
         base += kLanes) {
      Simd::Reg sum[S];
      for (int p = 0; p < S; ++p) sum[p] = Simd::zero();
      for (int64_t i = windows.begin; i < windows.end; ++i) {
        const auto source = grad.source(n, c, i, 0);
        const int64_t r = padded - i * s.stride_height;
        for (int64_t d = shifts - 1; d >= 0; --d) {
          const int64_t begin = clamp_to(d - base, 0, kLanes);
          const int64_t end = clamp_to(s.out_width - base + d, begin, kLanes);
          const Simd::Mask mask = Simd::mask_range(begin, end);
          for (int p = 0; p < S && d * S + p < s.kernel_width; ++p)
            sum[p] = grad.add_range(sum[p], source, base - d,
                                    grad.tap(r * s.kernel_width + d * S + p), begin, end, mask);
        }
      }
      for (int p = 0; p < S; ++p) sum[p] = grad.finish(sum[p]);
      const GradEdge<S, 1> edge = grad_edge<S, 1>(base, 0, s);
      store_inputs<S, true>(target + base * S - s.padding_width, sum, edge.inputs);
    }
  });
}

// --- Windows that do not overlap: every input belongs to one window or to none -------------------

// Writes `length` inputs, of which the first `taps` are neighbouring taps of the window at `source`
// and the rest belong to no window.
template <class Grad>
inline void spread_window(const Grad& grad, typename Grad::Source source, int64_t first_tap,
                          int64_t taps, int64_t length, float* target) {
  for (int64_t x = 0; x < length; x += kLanes) {
    const Simd::Mask taps_here = Simd::mask_first(clamp_to(taps - x, 0, kLanes));
    store_lanes(target + x, grad.spread_one(source, first_tap + x, taps_here),
                min_of(kLanes, length - x));
  }
}

// Lane l of a vector that begins `phase` inputs after a window's first: which window it lies in,
// and which tap of the window's row it is.
struct SpreadPhase {
  Simd::Ints window;
  Simd::Ints tap;
};

inline SpreadPhase spread_phase(int64_t phase, int64_t kernel, int64_t stride) {
  int32_t window[kLanes];
  int32_t tap[kLanes];
  int32_t number = 0;
  for (int64_t l = 0; l < kLanes; ++l) {
    window[l] = number;
    tap[l] = phase < kernel ? static_cast<int32_t>(phase) : kNoTap;
    if (++phase == stride) {
      phase = 0;
      ++number;
    }
  }
  return {Simd::load_ints(window), Simd::load_ints(tap)};
}

// Strides of at most kLanes: a vector of inputs spans several windows.
template <class Grad>
void grad_narrow_spread_rows(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  SpreadPhase phases[kLanes] = {};
  for (int64_t p = 0; p < s.stride_width; ++p)
    phases[p] = spread_phase(p, s.kernel_width, s.stride_width);
  for_each_input_row(grad, range, [&](int64_t n, int64_t c, int64_t y, float* target) {
    const int64_t i = (y + s.padding_height) / s.stride_height;
    const int64_t r = (y + s.padding_height) % s.stride_height;
    const bool covered = i < s.out_height && r < s.kernel_height;
    const auto source = grad.source(n, c, covered ? i : 0, 0);
    int64_t window = s.padding_width / s.stride_width;
    int64_t phase = s.padding_width % s.stride_width;
    for (int64_t x = 0; x < s.in_width; x += kLanes) {
      const int64_t windows = covered ? clamp_to(s.out_width - window, 0, kLanes) : 0;
      const auto grads = grad.windows(grad.advance(source, window), windows);
      store_lanes(target + x,
                  grad.spread(grads, phases[phase].window, phases[phase].tap, r * s.kernel_width),
                  min_of(kLanes, s.in_width - x));
      for (phase += kLanes; phase >= s.stride_width; phase -= s.stride_width) ++window;
    }
  });
}

template <class Grad>
void grad_spread_rows(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  for_each_input_row(grad, range, [&](int64_t n, int64_t c, int64_t y, float* target) {
    const int64_t i = (y + s.padding_height) / s.stride_height;
    const int64_t r = (y + s.padding_height) % s.stride_height;
    const int64_t windows = i < s.out_height && r < s.kernel_height ? s.out_width : 0;
    int64_t x = 0;
    for (int64_t j = 0; j < windows && x < s.in_width; ++j) {
      const int64_t origin = j * s.stride_width - s.padding_width;
      const int64_t window_end = min_of(origin + s.kernel_width, s.in_width);
      const int64_t next =
          j + 1 < windows ? min_of(origin + s.stride_width, s.in_width) : s.in_width;
      spread_window(grad, grad.source(n, c, i, j), r * s.kernel_width + x - origin, window_end - x,
                    next - x, target + x);
      x = next;
    }
    for (; x < s.in_width; x += kLanes)
      store_lanes(target + x, Simd::zero(), min_of(kLanes, s.in_width - x));
  });
}

// --- Everything else: scatter --------------------------------------------------------------------

// Adds the window (i, j) to rows [begin, end) of the plane.
template <typename Offset>
inline void scatter_window(const MaxGrad<Offset>& grad, int64_t n, int64_t c, int64_t i, int64_t j,
                           RowRange rows, float* plane) {
  const Pool2dShape& s = grad.call.shape;
  const auto source = grad.source(n, c, i, j);
  const uint32_t offset = static_cast<uint32_t>(*source.offset);
  const uint32_t width = static_cast<uint32_t>(s.kernel_width);
  const int64_t y = i * s.stride_height - s.padding_height + offset / width * s.dilation_height;
  const int64_t x = j * s.stride_width - s.padding_width + offset % width * s.dilation_width;
  if (y >= rows.begin && y < rows.end && x < s.in_width)
    plane[y * grad.call.grad_input_strides.row + x] += *source.grad;
}

inline void scatter_window(const AvgGrad& grad, int64_t n, int64_t c, int64_t i, int64_t j,
                           RowRange rows, float* plane) {
  const Pool2dShape& s = grad.call.shape;
  const float value = *grad.source(n, c, i, j) / grad.call.divisor;
  const int64_t row = i * s.stride_height - s.padding_height;
  const int64_t column = j * s.stride_width - s.padding_width;
  const int64_t row_end = min_of(row + s.kernel_height, rows.end);
  const int64_t column_end = min_of(column + s.kernel_width, s.in_width);
  for (int64_t y = max_of(row, rows.begin); y < row_end; ++y) {
    float* target = plane + y * grad.call.grad_input_strides.row;
    for (int64_t x = max_of(column, 0); x < column_end; ++x) target[x] += value;
  }
}

template <class Grad>
void grad_scatter_rows(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const Strides4& gi = grad.call.grad_input_strides;
  const int64_t extent = (s.kernel_height - 1) * s.dilation_height + 1;
  for (int64_t row = range.begin; row < range.end;) {
    const int64_t plane_index = row / s.in_height;
    const int64_t n = plane_index / s.channels;
    const int64_t c = plane_index % s.channels;
    const int64_t begin = row % s.in_height;
    const RowRange rows{begin, min_of(s.in_height, begin + range.end - row)};
    float* plane = grad.call.grad_input + element_of(gi, n, c, 0, 0);
    for (int64_t y = rows.begin; y < rows.end; ++y)
      for (int64_t x = 0; x < s.in_width; ++x) plane[y * gi.row + x] = 0.0f;
    const int64_t first =
        windows_over(rows.begin + s.padding_height, extent, s.stride_height, s.out_height).begin;
    const int64_t last =
        windows_over(rows.end - 1 + s.padding_height, extent, s.stride_height, s.out_height).end;
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < s.out_width; ++j) scatter_window(grad, n, c, i, j, rows, plane);
    row += rows.end - rows.begin;
  }
}

// Gathering costs one step per tap and vector, scattering one per output: the larger the window,
// the better scattering looks.
constexpr int64_t kMaxGatherTaps = 64;

template <class Grad>
void grad_general(const Grad& grad, RowRange range) {
  const Pool2dShape& s = grad.call.shape;
  const bool dilated = s.dilation_height > 1 || s.dilation_width > 1;
  if (!dilated && s.kernel_height * s.kernel_width <= kMaxGatherTaps) {
    if (s.stride_width == 1) return grad_gather_rows<1>(grad, range);
    if (s.stride_width == 2) return grad_gather_rows<2>(grad, range);
  }
  if (!dilated && s.stride_height >= s.kernel_height && s.stride_width >= s.kernel_width) {
    if (s.stride_width <= kLanes) return grad_narrow_spread_rows(grad, range);
    return grad_spread_rows(grad, range);
  }
  grad_scatter_rows(grad, range);
}

}  // namespace
