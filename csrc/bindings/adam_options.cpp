// SPDX-License-Identifier: MIT
#include "bindings/adam_options.h"

#include <ATen/Functions.h>

#include <cmath>

namespace fastconv::bindings {
namespace {

using at::Tensor;

// A number, or a tensor of one element: the arithmetic of both as torch's Python loop does it.
struct Value {
  double number;
  Tensor tensor;  // undefined for a plain number

  double read() const { return tensor.defined() ? tensor.item<double>() : number; }
};

Value one_minus(const Value& x) {
  if (!x.tensor.defined()) return {1.0 - x.number, {}};
  return {0.0, at::rsub(x.tensor, 1.0)};
}

Value power(const Value& x, double exponent) {
  if (!x.tensor.defined()) return {std::pow(x.number, exponent), {}};
  return {0.0, at::pow(x.tensor, exponent)};
}

Value times(const Value& x, double y) {
  if (!x.tensor.defined()) return {x.number * y, {}};
  return {0.0, at::mul(x.tensor, y)};
}

Value divide(const Value& x, const Value& y) {
  if (!x.tensor.defined() && !y.tensor.defined()) return {x.number / y.number, {}};
  if (!x.tensor.defined()) return {0.0, at::mul(at::reciprocal(y.tensor), x.number)};
  return {0.0, y.tensor.defined() ? at::div(x.tensor, y.tensor) : at::div(x.tensor, y.number)};
}

Value value_of(double number, const Tensor& tensor) {
  return {number, tensor.defined() ? tensor.detach().reshape({}) : tensor};
}

}  // namespace

AdamStepScalars adam_scalars(const AdamOptions& o, double step, cpu::AdamType type) {
  const Value lr = value_of(o.lr, o.lr_tensor);
  const Value beta1 = value_of(o.beta1, o.beta1_tensor);
  const Value beta2 = value_of(o.beta2, o.beta2_tensor);
  AdamStepScalars s{};
  s.beta1 = beta1.read();
  // torch brings a tensor beta1, and no other, to the parameter's precision.
  if (o.beta1_tensor.defined() && type == cpu::AdamType::kFloat32)
    s.beta1 = static_cast<float>(s.beta1);
  s.beta2 = beta2.read();
  s.eps = o.eps;
  s.step_size = divide(lr, one_minus(power(beta1, step))).read();
  s.correction = power(one_minus(power(beta2, step)), 0.5).read();
  s.l2 = o.decoupled_weight_decay ? 0.0 : o.weight_decay;
  s.keep = 1.0;
  if (o.decoupled_weight_decay && o.weight_decay != 0.0)
    s.keep = one_minus(times(lr, o.weight_decay)).read();
  s.maximize = o.maximize;
  return s;
}

}  // namespace fastconv::bindings
