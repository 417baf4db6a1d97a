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
  Simd::Ints tap(int64_t r, int64_t q) const {
    return Simd::set1_int(static_cast<int32_t>(r * call.shape.kernel_width + q));
  }
  Simd::Reg add_all(Simd::Reg sum, Source s, int64_t at, Simd::Ints tap) const {
    const Simd::Mask won = Simd::equal_int(Simd::load_all(s.offset + at), tap);
    return Simd::add_masked(sum, won, Simd::load(s.grad + at));
  }
  // Only lanes [begin, end), which `mask` repeats, exist.
  Simd::Reg add_range(Simd::Reg sum, Source s, int64_t at, Simd::Ints tap, int64_t begin,
                      int64_t end, Simd::Mask mask) const {
    const Simd::Mask won = Simd::equal_int(Simd::load_range(s.offset + at, begin, end), tap);
    return Simd::add_masked(sum, won, Simd::load_masked(s.grad + at, mask));
  }
  Simd::Reg finish(Simd::Reg sum) const { return sum; }

  // What the window at `s` gives to its tap.
  float value(Source s, int64_t r, int64_t q) const {
    return *s.offset == r * call.shape.kernel_width + q ? *s.grad : 0.0f;
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
  Simd::Ints tap(int64_t, int64_t) const { return Simd::set1_int(0); }
  Simd::Reg add_all(Simd::Reg sum, Source s, int64_t at, Simd::Ints) const {
    return Simd::add(sum, Simd::load(s + at));
  }
  Simd::Reg add_range(Simd::Reg sum, Source s, int64_t at, Simd::Ints, int64_t, int64_t,
                      Simd::Mask mask) const {
    return Simd::add(sum, Simd::load_masked(s + at, mask));
  }
  Simd::Reg finish(Simd::Reg sum) const { return Simd::div(sum, Simd::set1(call.divisor)); }
  float value(Source s, int64_t, int64_t) const { return *s / call.divisor; }

  const Call& call;
};

}  // namespace
