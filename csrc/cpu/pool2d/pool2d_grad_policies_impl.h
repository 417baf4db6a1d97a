// SPDX-License-Identifier: MIT
// What a backward pooling kernel adds to an input for one window that holds it: the window's
// gradient if the tap won, or the gradient of an average. Internal linkage throughout, see
// gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/pool2d/pool2d_ukernels.h"

namespace {

using fastconv::Strides4;
using fastconv::cpu::AvgGradUniform;
using fastconv::cpu::MaxPool2dBackward;

inline int64_t element_of(const Strides4& strides, int64_t n, int64_t c, int64_t i, int64_t j) {
  return n * strides.batch + c * strides.channel + i * strides.row + j * strides.column;
}

// Elements between a window that is read and what is fetched meanwhile, where tensors come out of
// memory: rows of gradients and of offsets are more streams than the hardware follows. (Always
// inlined, because GCC drops calls of functions that only prefetch as having no effect.)
constexpr int64_t kSourceAhead = 1024;

// Marks lanes between windows; stays negative when a tap number is added.
constexpr int32_t kNoTap = INT32_MIN;

template <typename Offset>
struct MaxGrad {
  using Call = MaxPool2dBackward<float>;
  // Gradients and offsets from one output onwards, along the contiguous dimension.
  struct Source {
    const float* grad;
    const Offset* offset;
  };

  explicit MaxGrad(const Call& c) : call(c), offsets(static_cast<const Offset*>(c.offsets)) {}

  Source source(int64_t n, int64_t c, int64_t i, int64_t j) const {
    return {call.grad_output + element_of(call.grad_output_strides, n, c, i, j),
            offsets + element_of(call.offset_strides, n, c, i, j)};
  }
  Source advance(Source s, int64_t outputs) const { return {s.grad + outputs, s.offset + outputs}; }
  Source down(Source s, int64_t rows) const {
    return {s.grad + rows * call.grad_output_strides.row,
            s.offset + rows * call.offset_strides.row};
  }
  // True when offsets lie as the gradients do.
  bool sources_dense() const {
    const Strides4 &a = call.offset_strides, &b = call.grad_output_strides;
    return a.batch == b.batch && a.channel == b.channel && a.row == b.row;
  }
  template <int Vectors>
  [[gnu::always_inline]] void prefetch(Source s) const {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(s.grad + v * Simd::kLanes + kSourceAhead);
    __builtin_prefetch(s.offset + kSourceAhead);
  }
  Simd::Ints tap(int64_t number) const { return Simd::set1_int(static_cast<int32_t>(number)); }
  Simd::Reg add_all(Simd::Reg sum, Source s, int64_t at, Simd::Ints tap) const {
    const Simd::Mask won = Simd::equal_int(Simd::load_all(s.offset + at), tap);
    return Simd::add_masked(sum, won, Simd::load(s.grad + at));
  }
  // Only lanes [begin, end), which `mask` repeats, exist.
  Simd::Reg add_range(Simd::Reg sum, Source s, int64_t at, Simd::Ints tap, int64_t begin,
                      int64_t end, Simd::Mask mask) const {
    const Simd::Mask won = Simd::equal_int(Simd::load_range(s.offset + at, begin, end, mask), tap);
    return Simd::add_masked(sum, won, Simd::load_masked(s.grad + at, mask));
  }
  Simd::Reg finish(Simd::Reg sum) const { return sum; }

  // What `count` neighbouring windows give, for lanes that belong to any of them.
  struct Windows {
    Simd::Reg grad;
    Simd::Ints offset;
  };
  Windows windows(Source s, int64_t count) const {
    return {Simd::load_masked(s.grad, Simd::mask_first(count)),
            Simd::load_range(s.offset, 0, count, Simd::mask_first(count))};
  }
  Windows all_windows(Source s) const { return {Simd::load(s.grad), Simd::load_all(s.offset)}; }
  // Lane l is tap `tap` of window l.
  Simd::Reg give(const Windows& w, Simd::Ints tap) const {
    return Simd::select(Simd::equal_int(w.offset, tap), w.grad, Simd::zero());
  }
  // Lane l is tap taps[l] + first_tap of window index[l], or none where taps[l] is kNoTap.
  Simd::Reg spread(const Windows& w, Simd::Ints index, Simd::Ints taps, int64_t first_tap) const {
    const Simd::Ints tap = Simd::add_int(taps, Simd::set1_int(static_cast<int32_t>(first_tap)));
    const Simd::Mask won = Simd::equal_int(Simd::permute_int(w.offset, index), tap);
    return Simd::select(won, Simd::permute(w.grad, index), Simd::zero());
  }
  // Lane l is tap first_tap + l of the window at `s`; lanes outside `taps` are none of its taps.
  Simd::Reg spread_one(Source s, int64_t first_tap, Simd::Mask taps) const {
    const Simd::Ints winner = Simd::set1_int(static_cast<int32_t>(*s.offset - first_tap));
    const Simd::Reg grad = Simd::select(taps, Simd::set1(*s.grad), Simd::zero());
    return Simd::select(Simd::equal_int(Simd::lane_numbers(), winner), grad, Simd::zero());
  }

  const Call& call;
  const Offset* offsets;
};

struct AvgGrad {
  using Call = AvgGradUniform;
  using Source = const float*;

  explicit AvgGrad(const Call& c) : call(c) {}

  Source source(int64_t n, int64_t c, int64_t i, int64_t j) const {
    return call.grad_output + element_of(call.grad_output_strides, n, c, i, j);
  }
  Source advance(Source s, int64_t outputs) const { return s + outputs; }
  Source down(Source s, int64_t rows) const { return s + rows * call.grad_output_strides.row; }
  bool sources_dense() const { return true; }
  template <int Vectors>
  [[gnu::always_inline]] void prefetch(Source s) const {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(s + v * Simd::kLanes + kSourceAhead);
  }
  Simd::Ints tap(int64_t) const { return Simd::set1_int(0); }
  Simd::Reg add_all(Simd::Reg sum, Source s, int64_t at, Simd::Ints) const {
    return Simd::add(sum, Simd::load(s + at));
  }
  Simd::Reg add_range(Simd::Reg sum, Source s, int64_t at, Simd::Ints, int64_t, int64_t,
                      Simd::Mask mask) const {
    return Simd::add(sum, Simd::load_masked(s + at, mask));
  }
  Simd::Reg finish(Simd::Reg sum) const { return Simd::div(sum, Simd::set1(call.divisor)); }

  using Windows = Simd::Reg;
  Windows windows(Source s, int64_t count) const {
    return finish(Simd::load_masked(s, Simd::mask_first(count)));
  }
  Windows all_windows(Source s) const { return finish(Simd::load(s)); }
  Simd::Reg give(Windows w, Simd::Ints) const { return w; }
  Simd::Reg spread(Windows w, Simd::Ints index, Simd::Ints taps, int64_t) const {
    const Simd::Mask none = Simd::equal_int(taps, Simd::set1_int(kNoTap));
    return Simd::select(none, Simd::zero(), Simd::permute(w, index));
  }
  Simd::Reg spread_one(Source s, int64_t, Simd::Mask taps) const {
    return Simd::select(taps, Simd::set1(*s / call.divisor), Simd::zero());
  }

  const Call& call;
};

}  // namespace
