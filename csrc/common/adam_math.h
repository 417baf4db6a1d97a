// SPDX-License-Identifier: MIT
// The scalars of one Adam step, folded so that a parameter costs one square root and one division.
//
// Adam as published (Kingma, Ba: https://arxiv.org/abs/1412.6980), t the number of the step:
//   m += (1 - beta1) (g - m)            v = beta2 v + (1 - beta2) g g
//   p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// and the same multiplied through by c = sqrt(1 - beta2^t), which is what the kernels compute:
//   p -= (lr c / (1 - beta1^t)) * m / (sqrt(v) + eps c)
#pragma once

namespace fastconv {

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

struct AdamCoefficients {
  double average_weight;  // of (g - m), added to m or, when average_from_grad, to g
  bool average_from_grad;
  double beta2;
  double one_minus_beta2;
  double step_size;  // folded
  double eps;        // folded
  double l2;
  double keep;
  double sign;  // -1 when maximizing
};

inline AdamCoefficients fold_adam_scalars(const AdamStepScalars& s) {
  // Folding must not take a representable eps below the numbers that survive flushing: 0 / 0 is not
  // 0.
  constexpr double kSmallestFloat = 1.17549435e-38;
  AdamCoefficients c{};
  const double weight = 1.0 - s.beta1;
  // Interpolation from the nearer end: exact at both, as torch.lerp is.
  c.average_from_grad = weight >= 0.5;
  c.average_weight = c.average_from_grad ? weight - 1.0 : weight;
  c.beta2 = s.beta2;
  c.one_minus_beta2 = 1.0 - s.beta2;
  c.step_size = s.step_size * s.correction;
  c.eps = s.eps * s.correction;
  if (s.eps > 0.0 && c.eps < kSmallestFloat) c.eps = kSmallestFloat;
  c.l2 = s.l2;
  c.keep = s.keep;
  c.sign = s.maximize ? -1.0 : 1.0;
  return c;
}

}  // namespace fastconv
