// SPDX-License-Identifier: MIT
// exp, sigmoid and tanh of one vector, written against the Simd of the simd_<isa>.h that is
// included before. Largest errors, measured over the whole range by tests/test_vector_math.cpp:
//   exp      1.5 ulp                         sigmoid, tanh      1e-7 absolute and 3 ulp
// NaN stays NaN, infinities go to the limits. Results below the smallest normal float may be zero.
//
// exp(x) = 2^n * p(r) with n = rint(x / ln 2) and r = x - n * ln 2 in two parts (Cody and Waite);
// p is a polynomial of degree 6 fitted to the interval [-ln 2 / 2, ln 2 / 2].
#pragma once

#include <cstdint>

namespace {

struct Math {
  using Reg = Simd::Reg;

  static Reg exp(Reg x) {
    // Past these ends the result is infinite or zero; a NaN passes, it must be the second operand.
    x = Simd::min(Simd::set1(89.0f), Simd::max(Simd::set1(-104.0f), x));
    const Reg n = Simd::round(Simd::mul(x, Simd::set1(1.44269504f)));
    Reg r = Simd::fma(n, Simd::set1(-0.693359375f), x);
    r = Simd::fma(n, Simd::set1(2.12194440e-4f), r);
    Reg p = Simd::set1(0x1.6a244ap-10f);
    p = Simd::fma(p, r, Simd::set1(0x1.1239d4p-7f));
    p = Simd::fma(p, r, Simd::set1(0x1.5558f2p-5f));
    p = Simd::fma(p, r, Simd::set1(0x1.555492p-3f));
    p = Simd::fma(p, r, Simd::set1(0x1.fffffcp-2f));
    p = Simd::fma(p, r, Simd::set1(1.0f));
    p = Simd::fma(p, r, Simd::set1(1.0f));
    return Simd::times_power_of_two(p, n);
  }

  static Reg sigmoid(Reg x) {
    const Reg one = Simd::set1(1.0f);
    return Simd::div(one, Simd::add(one, exp(Simd::sub(Simd::zero(), x))));
  }

  // Near zero x + x^3 * q(x^2), which keeps the relative error small; elsewhere from exp(2 |x|).
  static Reg tanh(Reg x) {
    const Reg one = Simd::set1(1.0f);
    const Reg magnitude = Simd::abs(x);
    const Reg square = Simd::mul(x, x);
    Reg q = Simd::set1(-0.00552854f);
    q = Simd::fma(q, square, Simd::set1(0.02048324f));
    q = Simd::fma(q, square, Simd::set1(-0.05369294f));
    q = Simd::fma(q, square, Simd::set1(0.13330899f));
    q = Simd::fma(q, square, Simd::set1(-0.33333263f));
    const Reg near_zero = Simd::fma(Simd::mul(x, square), q, x);
    const Reg e = exp(Simd::add(magnitude, magnitude));
    const Reg far = Simd::sub(one, Simd::div(Simd::set1(2.0f), Simd::add(e, one)));
    return Simd::select(Simd::greater_or_nan(magnitude, Simd::set1(0.625f)),
                        Simd::copy_sign(far, x), near_zero);
  }
};

}  // namespace
