// SPDX-License-Identifier: MIT
// Adam on vectors of one ISA. The file that includes this defines, before it, one struct per
// AdamType (VectorFloat32, VectorFloat64, VectorBfloat16): the element types, a register of kLanes
// numbers, loads and stores of all lanes or the first n, arithmetic, and
//   ratio(x, v, eps) = x / (sqrt(v) + eps), with the infinities and NaN of that formula.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/adam/adam_ukernels.h"

namespace {

using fastconv::AdamCoefficients;
using fastconv::cpu::AdamGradient;
using fastconv::cpu::AdamKernels;
using fastconv::cpu::AdamTensor;

template <class V>
struct Arrays {
  typename V::Element* param;
  typename V::Element* grad;
  typename V::State* exp_avg;
  typename V::State* exp_avg_sq;
  typename V::State* max_exp_avg_sq;
};

template <class V>
struct Constants {
  typename V::Reg unscale;  // stored
  typename V::Reg factor,   // what else the gradient is multiplied by
      l2, average_weight, beta2, one_minus_beta2, step_size, eps, keep;
  bool average_from_grad;

  Constants(const AdamCoefficients& c, const AdamGradient& gradient)
      : unscale(V::set1(gradient.unscale)),
        factor(V::set1(gradient.factor * c.sign * (gradient.write_back ? 1.0 : gradient.unscale))),
        l2(V::set1(c.l2)),
        average_weight(V::set1(c.average_weight)),
        beta2(V::set1(c.beta2)),
        one_minus_beta2(V::set1(c.one_minus_beta2)),
        step_size(V::set1(c.step_size)),
        eps(V::set1(c.eps)),
        keep(V::set1(c.keep)),
        average_from_grad(c.average_from_grad) {}
};

// The access to `n` of a vector's lanes; a full vector ignores n.
template <class V, bool kPart>
struct Access {
  using Reg = typename V::Reg;
  template <class T>
  static Reg load(const T* p, int64_t n) {
    if constexpr (kPart) return V::load_first(p, n);
    return V::load(p);
  }
  template <class T>
  static void store(T* p, Reg x, int64_t n) {
    if constexpr (kPart) return V::store_first(p, x, n);
    V::store(p, x);
  }
};

// Elements i .. i + n of every array, n <= kLanes.
template <class V, int kVariant, bool kPart>
inline __attribute__((always_inline)) void update_vector(const Arrays<V>& a, const Constants<V>& c,
                                                         int64_t i, int64_t n) {
  using Io = Access<V, kPart>;
  using Reg = typename V::Reg;
  Reg p = Io::load(a.param + i, n);
  Reg g = Io::load(a.grad + i, n);
  if constexpr ((kVariant & fastconv::cpu::kAdamWriteBack) != 0) {
    g = V::mul(g, c.unscale);
    Io::store(a.grad + i, g, n);
  }
  if constexpr ((kVariant & fastconv::cpu::kAdamScale) != 0) g = V::mul(g, c.factor);
  if constexpr ((kVariant & fastconv::cpu::kAdamL2) != 0) g = V::fma(c.l2, p, g);
  Reg m = Io::load(a.exp_avg + i, n);
  m = V::fma(c.average_weight, V::sub(g, m), c.average_from_grad ? g : m);
  Io::store(a.exp_avg + i, m, n);
  Reg v = Io::load(a.exp_avg_sq + i, n);
  v = V::fma(V::mul(c.one_minus_beta2, g), g, V::mul(v, c.beta2));
  Io::store(a.exp_avg_sq + i, v, n);
  if constexpr ((kVariant & fastconv::cpu::kAdamMax) != 0) {
    v = V::max_or_nan(v, Io::load(a.max_exp_avg_sq + i, n));
    Io::store(a.max_exp_avg_sq + i, v, n);
  }
  p = V::fnma(c.step_size, V::ratio(m, v, c.eps), V::mul(p, c.keep));
  Io::store(a.param + i, p, n);
}

template <class V, int kVariant>
void update(const AdamTensor& tensor, int64_t begin, int64_t size, const AdamGradient& gradient) {
  using Element = typename V::Element;
  using State = typename V::State;
  const Arrays<V> a{
      static_cast<Element*>(tensor.param) + begin, static_cast<Element*>(tensor.grad) + begin,
      static_cast<State*>(tensor.exp_avg) + begin, static_cast<State*>(tensor.exp_avg_sq) + begin,
      static_cast<State*>(tensor.max_exp_avg_sq) + begin};
  const Constants<V> c(tensor.coefficients, gradient);
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) update_vector<V, kVariant, false>(a, c, i, 0);
  if (i < size) update_vector<V, kVariant, true>(a, c, i, size - i);
}

// Two accumulators of doubles per register, so that no square overflows or vanishes in float32.
template <class V>
double sum_of_squares(const void* values, int64_t size) {
  const auto* p = static_cast<const typename V::Element*>(values);
  typename V::Wide sum = V::wide_zero();
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) V::add_squares(&sum, V::load(p + i));
  if (i < size) V::add_squares(&sum, V::load_first(p + i, size - i));
  return V::wide_total(sum);
}

template <class V, int... kVariants>
constexpr void fill_kernels(AdamKernels* kernels, fastconv::cpu::AdamType type,
                            std::integer_sequence<int, kVariants...>) {
  const int t = static_cast<int>(type);
  ((kernels->update[t][kVariants] = &update<V, kVariants>), ...);
  kernels->sum_of_squares[t] = &sum_of_squares<V>;
}

constexpr AdamKernels make_kernels() {
  using fastconv::cpu::AdamType;
  constexpr std::make_integer_sequence<int, fastconv::cpu::kAdamVariantCount> all;
  AdamKernels kernels{};
  fill_kernels<VectorFloat32>(&kernels, AdamType::kFloat32, all);
  fill_kernels<VectorFloat64>(&kernels, AdamType::kFloat64, all);
  fill_kernels<VectorBfloat16>(&kernels, AdamType::kBfloat16, all);
  return kernels;
}

constexpr AdamKernels kAdamKernels = make_kernels();

}  // namespace
