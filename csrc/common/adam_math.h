// SPDX-License-Identifier: MIT
// The scalars of one Adam step, folded so that a parameter costs one square root and one division,
// and the step of one number as the CUDA kernels take it.
//
// Adam as published (Kingma, Ba: https://arxiv.org/abs/1412.6980), t the number of the step:
//   m += (1 - beta1) (g - m)            v = beta2 v + (1 - beta2) g g
//   p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// and the same multiplied through by c = sqrt(1 - beta2^t), which is what the kernels compute:
//   p -= (lr c / (1 - beta1^t)) * m / (sqrt(v) + eps c)
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace fastconv {

// Parameter and gradient / both averages: float / float, double / double, bfloat16 / float.
enum class AdamType : int32_t { kFloat32, kFloat64, kBfloat16 };

inline constexpr int kAdamTypeCount = 3;

// What a step of one tensor depends on besides the tensor.
struct AdamStepScalars {
  double beta1;
  double beta2;
  double eps;
  double step_size;   // lr / (1 - beta1^t)
  double correction;  // sqrt(1 - beta2^t)
  double l2;          // added to the gradient, times the parameter; 0 when decoupled
  double keep;        // the parameter is multiplied by this first: 1 - lr * weight_decay, or 1
  bool maximize;
};

template <class Real>
struct AdamCoefficientsOf {
  Real average_weight;  // of (g - m), added to m or, when average_from_grad, to g
  bool average_from_grad;
  Real beta2;
  Real one_minus_beta2;
  Real step_size;  // folded
  Real eps;        // folded
  Real l2;
  Real keep;
  Real sign;  // -1 when maximizing
};

using AdamCoefficients = AdamCoefficientsOf<double>;

// Interpolation from the nearer end: exact at both, as torch.lerp is.
inline double adam_average_weight(double beta1, bool* from_grad) {
  const double weight = 1.0 - beta1;
  *from_grad = weight >= 0.5;
  return *from_grad ? weight - 1.0 : weight;
}

// Folding must not take a representable eps below the numbers that survive flushing: 0 / 0 is not
// 0.
template <class Real>
FASTCONV_HOST_DEVICE inline Real fold_adam_eps(Real eps, Real correction) {
  constexpr Real kSmallestFloat = static_cast<Real>(1.17549435e-38);
  const Real folded = eps * correction;
  return eps > Real{0} && folded < kSmallestFloat ? kSmallestFloat : folded;
}

inline AdamCoefficients fold_adam_scalars(const AdamStepScalars& s) {
  AdamCoefficients c{};
  c.average_weight = adam_average_weight(s.beta1, &c.average_from_grad);
  c.beta2 = s.beta2;
  c.one_minus_beta2 = 1.0 - s.beta2;
  c.step_size = s.step_size * s.correction;
  c.eps = fold_adam_eps(s.eps, s.correction);
  c.l2 = s.l2;
  c.keep = s.keep;
  c.sign = s.maximize ? -1.0 : 1.0;
  return c;
}

// log(beta) in two pieces, so that t log(beta) is as good as if it were rounded once.
template <class Real>
struct AdamLogBeta {
  Real high;
  Real low;
};

template <class Real>
inline AdamLogBeta<Real> adam_log_beta(double beta) {
  const double exact = std::log(beta);
  const Real high = static_cast<Real>(exact);
  return {high, std::isinf(exact) ? Real{0} : static_cast<Real>(exact - static_cast<double>(high))};
}

// 1 - beta^t, to about two units in the last place; 1 for beta = 0. Precondition: t >= 1.
template <class Real>
FASTCONV_HOST_DEVICE inline Real adam_bias_correction(AdamLogBeta<Real> log_beta, Real t) {
  const Real x = t * log_beta.high;
  if (std::isinf(x)) return Real{1};
  const Real rest = std::fma(t, log_beta.high, -x) + t * log_beta.low;
  const Real e = std::expm1(x);
  return -std::fma(rest, e + Real{1}, e);
}

// One number's step. `gradient` is unscaled and clipped, and has the sign of `maximize`; without
// amsgrad `largest` is left alone. Every rounding is spelled out: the compiler has nothing to
// contract.
template <class Real>
FASTCONV_HOST_DEVICE inline void adam_step_number(const AdamCoefficientsOf<Real>& c, Real gradient,
                                                  Real& param, Real& exp_avg, Real& exp_avg_sq,
                                                  bool amsgrad, Real& largest) {
  const Real g = c.l2 != Real{0} ? std::fma(c.l2, param, gradient) : gradient;
  exp_avg = std::fma(c.average_weight, g - exp_avg, c.average_from_grad ? g : exp_avg);
  exp_avg_sq = std::fma(c.one_minus_beta2 * g, g, exp_avg_sq * c.beta2);
  Real v = exp_avg_sq;
  if (amsgrad) {
    // A NaN on either side stays.
    if (v < largest || largest != largest) v = largest;
    largest = v;
  }
  param = std::fma(-c.step_size, exp_avg / (std::sqrt(v) + c.eps), param * c.keep);
}

}  // namespace fastconv
