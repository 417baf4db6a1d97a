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

  // 1 / (1 + exp(-x)), with exp as above but that n and r here belong to x negated and -r.
  static Reg sigmoid(Reg x) {
    const Reg one = Simd::set1(1.0f);
    x = Simd::min(Simd::set1(104.0f), Simd::max(Simd::set1(-89.0f), x));
    const Reg n = Simd::round(Simd::mul(x, Simd::set1(-1.44269504f)));
    Reg r = Simd::fma(n, Simd::set1(0.693359375f), x);
    r = Simd::fma(n, Simd::set1(-2.12194440e-4f), r);
    Reg p = Simd::set1(0x1.6a244ap-10f);
    p = Simd::fma(p, r, Simd::set1(-0x1.1239d4p-7f));
    p = Simd::fma(p, r, Simd::set1(0x1.5558f2p-5f));
    p = Simd::fma(p, r, Simd::set1(-0x1.555492p-3f));
    p = Simd::fma(p, r, Simd::set1(0x1.fffffcp-2f));
    p = Simd::fma(p, r, Simd::set1(-1.0f));
    p = Simd::fma(p, r, one);
    return Simd::div(one, Simd::add(one, Simd::times_power_of_two(p, n)));
  }

  // t / (t + 2) with t = exp(2 |x|) - 1 = 2^n * (exp(2 r) - 1) + (2^n - 1), n = rint(2 |x| / ln 2),
  // r = |x| - n * ln 2 / 2: no cancellation near zero, where n is 0. The product n * ln 2 need not
  // be more exact: the larger n, the less t matters.
  static Reg tanh(Reg x) {
    const Reg one = Simd::set1(1.0f);
    // From here on the result rounds to one; a NaN passes, it must be the second operand.
    const Reg magnitude = Simd::min(Simd::set1(9.02f), Simd::abs(x));
    const Reg n = Simd::round(Simd::mul(magnitude, Simd::set1(2.88539008f)));
    const Reg r = Simd::fma(n, Simd::set1(-0.346573591f), magnitude);
    Reg q = Simd::set1(0x1.6b97a4p-4f);
    q = Simd::fma(q, r, Simd::set1(0x1.122538p-2f));
    q = Simd::fma(q, r, Simd::set1(0x1.5556f6p-1f));
    q = Simd::fma(q, r, Simd::set1(0x1.5554b4p+0f));
    q = Simd::fma(q, r, Simd::set1(0x1.fffffep+0f));
    const Reg small = Simd::fma(Simd::mul(q, r), r, Simd::add(r, r));  // exp(2 r) - 1
    const Reg scale = Simd::times_power_of_two(one, n);
    const Reg t = Simd::fma(scale, small, Simd::sub(scale, one));
    return Simd::copy_sign(Simd::div(t, Simd::add(t, Simd::set1(2.0f))), x);
  }
};

}  // namespace
