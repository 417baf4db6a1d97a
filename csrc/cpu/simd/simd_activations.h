// SPDX-License-Identifier: MIT
// The activations and their derivatives on vectors; included after simd_<isa>.h. exp has an error
// of at most one unit in the last place: Cody-Waite reduction and a polynomial of degree six.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

namespace {

inline Simd::Reg is_at_most(Simd::Reg x, float most) {
  return Simd::select(Simd::greater_or_nan(x, Simd::set1(most)), Simd::set1(most), x);
}

// exp(x), for x from -87 to 88 and their values outside. NaN gives an arbitrary number.
inline Simd::Reg exp_of(Simd::Reg x) {
  x = Simd::max_or_nan(Simd::set1(-87.0f), is_at_most(x, 88.0f));
  const auto n = Simd::round(Simd::mul(x, Simd::set1(1.44269504f)));
  auto r = Simd::fma(n, Simd::set1(-0.693359375f), x);
  r = Simd::fma(n, Simd::set1(2.12194440e-4f), r);
  auto p = Simd::set1(0x1.6a244ap-10f);
  p = Simd::fma(p, r, Simd::set1(0x1.1239d4p-7f));
  p = Simd::fma(p, r, Simd::set1(0x1.5558f2p-5f));
  p = Simd::fma(p, r, Simd::set1(0x1.555492p-3f));
  p = Simd::fma(p, r, Simd::set1(0x1.fffffcp-2f));
  p = Simd::fma(p, r, Simd::set1(1.0f));
  p = Simd::fma(p, r, Simd::set1(1.0f));
  return Simd::times_power_of_two(p, n);
}

inline Simd::Reg keep_nan(Simd::Reg x, Simd::Reg result) {
  const auto infinity = Simd::set1(__builtin_inff());
  return Simd::select(Simd::greater_or_nan(x, infinity), x, result);
}

inline Simd::Reg sigmoid_of(Simd::Reg x) {
  const auto one = Simd::set1(1.0f);
  const auto y = Simd::div(one, Simd::add(one, exp_of(Simd::sub(Simd::zero(), x))));
  return keep_nan(x, y);
}

inline Simd::Reg tanh_of(Simd::Reg x) {
  const auto one = Simd::set1(1.0f);
  const auto size = Simd::max_or_nan(x, Simd::sub(Simd::zero(), x));
  const auto e = exp_of(Simd::add(size, size));
  auto large = Simd::sub(one, Simd::div(Simd::set1(2.0f), Simd::add(e, one)));
  large =
      Simd::select(Simd::greater_or_nan(x, Simd::zero()), large, Simd::sub(Simd::zero(), large));
  const auto z = Simd::mul(x, x);
  auto p = Simd::set1(-0.00552854f);
  p = Simd::fma(p, z, Simd::set1(0.02048324f));
  p = Simd::fma(p, z, Simd::set1(-0.05369294f));
  p = Simd::fma(p, z, Simd::set1(0.13330899f));
  p = Simd::fma(p, z, Simd::set1(-0.33333263f));
  const auto small = Simd::fma(Simd::mul(x, z), p, x);
  return keep_nan(x, Simd::select(Simd::greater_or_nan(size, Simd::set1(0.625f)), large, small));
}

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
  static Simd::Reg grad(Simd::Reg g, Simd::Reg y, Simd::Reg slope) {
    return Simd::select(Simd::greater_or_nan(y, Simd::zero()), g, Simd::mul(g, slope));
  }
};

struct Sigmoid {
  static constexpr bool kBeforePool = true;
  static Simd::Reg value(Simd::Reg x, Simd::Reg /*slope*/) { return sigmoid_of(x); }
  static Simd::Reg grad(Simd::Reg g, Simd::Reg y, Simd::Reg /*slope*/) {
    return Simd::mul(g, Simd::mul(Simd::sub(Simd::set1(1.0f), y), y));
  }
};

struct Tanh {
  static constexpr bool kBeforePool = true;
  static Simd::Reg value(Simd::Reg x, Simd::Reg /*slope*/) { return tanh_of(x); }
  static Simd::Reg grad(Simd::Reg g, Simd::Reg y, Simd::Reg /*slope*/) {
    return Simd::mul(g, Simd::sub(Simd::set1(1.0f), Simd::mul(y, y)));
  }
};

}  // namespace
