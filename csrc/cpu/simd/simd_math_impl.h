// SPDX-License-Identifier: MIT
// exp, sigmoid and tanh of one vector, written against the Simd of the simd_<isa>.h that is
// included before. Largest errors, measured over the whole range by tests/test_vector_math.cpp:
//   exp      1.5 ulp                         sigmoid, tanh      1e-7 absolute and 3 ulp
// NaN stays NaN, infinities go to the limits. Results below the smallest normal float may be zero.
//
// exp(x) = 2^n * p(r) with n = rint(x / ln 2) and r = x - n * ln 2 in two parts (Cody and Waite);
// p is a polynomial of degree 6 fitted to the interval [-ln 2 / 2, ln 2 / 2].
//
// sigmoid and tanh of several vectors run step by step for all of them: each is one chain of
// dependent instructions, and a processor that meets one chain after the other fills its queues
// with instructions that wait. Four to six together take two thirds of the time.
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
  template <int N>
  [[gnu::always_inline]] static void sigmoid(Reg (&x)[N]) {
    const Reg one = Simd::set1(1.0f);
    Reg n[N], p[N];
    each<N>(
        [&](int i) { x[i] = Simd::min(Simd::set1(104.0f), Simd::max(Simd::set1(-89.0f), x[i])); });
    each<N>([&](int i) { n[i] = Simd::round(Simd::mul(x[i], Simd::set1(-1.44269504f))); });
    each<N>([&](int i) { x[i] = Simd::fma(n[i], Simd::set1(0.693359375f), x[i]); });
    each<N>([&](int i) { x[i] = Simd::fma(n[i], Simd::set1(-2.12194440e-4f), x[i]); });
    each<N>([&](int i) { p[i] = Simd::set1(0x1.6a244ap-10f); });
    for_terms<N>(p, x,
                 {-0x1.1239d4p-7f, 0x1.5558f2p-5f, -0x1.555492p-3f, 0x1.fffffcp-2f, -1.0f, 1.0f});
    each<N>([&](int i) { p[i] = Simd::add(one, Simd::times_power_of_two(p[i], n[i])); });
    each<N>([&](int i) { x[i] = Simd::div(one, p[i]); });
  }
  static Reg sigmoid(Reg x) {
    Reg all[] = {x};
    sigmoid(all);
    return all[0];
  }

  // t / (t + 2) with t = exp(2 |x|) - 1 = 2^n * (exp(2 r) - 1) + (2^n - 1), n = rint(2 |x| / ln 2),
  // r = |x| - n * ln 2 / 2: no cancellation near zero, where n is 0. The product n * ln 2 need not
  // be more exact: the larger n, the less t matters.
  template <int N>
  [[gnu::always_inline]] static void tanh(Reg (&x)[N]) {
    const Reg one = Simd::set1(1.0f);
    Reg r[N], n[N], q[N];
    // From here on the result rounds to one; a NaN passes, it must be the second operand.
    each<N>([&](int i) { r[i] = Simd::min(Simd::set1(9.02f), Simd::abs(x[i])); });
    each<N>([&](int i) { n[i] = Simd::round(Simd::mul(r[i], Simd::set1(2.88539008f))); });
    each<N>([&](int i) { r[i] = Simd::fma(n[i], Simd::set1(-0.346573591f), r[i]); });
    each<N>([&](int i) { q[i] = Simd::set1(0x1.6b97a4p-4f); });
    for_terms<N>(q, r, {0x1.122538p-2f, 0x1.5556f6p-1f, 0x1.5554b4p+0f, 0x1.fffffep+0f});
    // exp(2 r) - 1
    each<N>([&](int i) { q[i] = Simd::fma(Simd::mul(q[i], r[i]), r[i], Simd::add(r[i], r[i])); });
    each<N>([&](int i) { n[i] = Simd::times_power_of_two(one, n[i]); });
    each<N>([&](int i) { q[i] = Simd::fma(n[i], q[i], Simd::sub(n[i], one)); });
    each<N>([&](int i) {
      x[i] = Simd::copy_sign(Simd::div(q[i], Simd::add(q[i], Simd::set1(2.0f))), x[i]);
    });
  }
  static Reg tanh(Reg x) {
    Reg all[] = {x};
    tanh(all);
    return all[0];
  }

 private:
  template <int N, class Body>
  [[gnu::always_inline]] static void each(Body&& body) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) body(i);
  }

  // Horner's rule: p = p * x + term, for one term after the other.
  template <int N, int Terms>
  [[gnu::always_inline]] static void for_terms(Reg (&p)[N], const Reg (&x)[N],
                                               const float (&terms)[Terms]) {
#pragma GCC unroll 8
    for (int k = 0; k < Terms; ++k)
      each<N>([&](int i) { p[i] = Simd::fma(p[i], x[i], Simd::set1(terms[k])); });
  }
};

}  // namespace
