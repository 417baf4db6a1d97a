// SPDX-License-Identifier: MIT
// The activations and their derivatives on vectors; included after simd_<isa>.h. Internal linkage
// throughout, see gemm_ukernels_impl.h.
#pragma once

#include "cpu/simd/simd_math_impl.h"

namespace {

// Each: the value, and the derivative as a factor on a gradient, both from the value `y`.
// kBeforePool: whether the order of rounding could choose another maximum behind the activation.

struct NoActivation {
  static constexpr bool kBeforePool = false;
  static Simd::Reg value(Simd::Reg x, Simd::Reg /*slope*/) { return x; }
  static Simd::Reg grad(Simd::Reg g, Simd::Reg /*y*/, Simd::Reg /*slope*/) { return g; }
};

// NaN is not "at most zero": it stays, and lets the gradient through, as torch has it.
struct Relu {
  static constexpr bool kBeforePool = false;
  static Simd::Reg value(Simd::Reg x, Simd::Reg /*slope*/) {
    return Simd::select(Simd::greater_or_nan(x, Simd::zero()), x, Simd::zero());
  }
  static Simd::Reg grad(Simd::Reg g, Simd::Reg y, Simd::Reg /*slope*/) {
    return Simd::select(Simd::greater_or_nan(y, Simd::zero()), g, Simd::zero());
  }
};

struct LeakyRelu {
  static constexpr bool kBeforePool = true;
  static Simd::Reg value(Simd::Reg x, Simd::Reg slope) {
    return Simd::select(Simd::greater_or_nan(x, Simd::zero()), x, Simd::mul(x, slope));
  }
  // NaN is not above zero, as torch has it; max gives the second operand for it.
  static Simd::Reg grad(Simd::Reg g, Simd::Reg y, Simd::Reg slope) {
    const auto positive = Simd::max(y, Simd::zero());
    return Simd::select(Simd::greater_or_nan(positive, Simd::zero()), g, Simd::mul(g, slope));
  }
};

struct Sigmoid {
  static constexpr bool kBeforePool = true;
  static Simd::Reg value(Simd::Reg x, Simd::Reg /*slope*/) { return Math::sigmoid(x); }
  static Simd::Reg grad(Simd::Reg g, Simd::Reg y, Simd::Reg /*slope*/) {
    return Simd::mul(g, Simd::mul(Simd::sub(Simd::set1(1.0f), y), y));
  }
};

struct Tanh {
  static constexpr bool kBeforePool = true;
  static Simd::Reg value(Simd::Reg x, Simd::Reg /*slope*/) { return Math::tanh(x); }
  static Simd::Reg grad(Simd::Reg g, Simd::Reg y, Simd::Reg /*slope*/) {
    return Simd::mul(g, Simd::sub(Simd::set1(1.0f), Simd::mul(y, y)));
  }
};

}  // namespace
