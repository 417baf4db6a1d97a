// SPDX-License-Identifier: MIT
#include "bindings/lstm_results.h"

#include <ATen/ATen.h>

#include "bindings/outputs.h"

namespace fastconv::bindings {
namespace {

constexpr auto kContiguous = at::MemoryFormat::Contiguous;

Tensor or_zeros(const Tensor& tensor, at::IntArrayRef sizes, const at::TensorOptions& options) {
  return tensor.defined() ? tensor.clone(kContiguous) : at::zeros(sizes, options);
}

Tensor zeros_if(bool wanted, at::IntArrayRef sizes, const at::TensorOptions& options) {
  return wanted ? at::zeros(sizes, options) : Tensor();
}

Tensor empty_if(bool wanted, at::IntArrayRef sizes, const at::TensorOptions& options) {
  return wanted ? empty_output(sizes, options, kContiguous) : Tensor();
}

}  // namespace

std::vector<int64_t> lstm_sizes(const LstmCall& call, int64_t width) {
  if (call.padded) return {call.shape.steps, call.shape.batch, width};
  return {call.shape.rows(), width};
}

int64_t lstm_saved_rows(const LstmCall& call) {
  return call.padded ? call.shape.steps * call.shape.batch : call.shape.rows();
}

Tensor dense_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? tensor->contiguous() : Tensor();
}

Tensor3 lstm_results_without_rows(const LstmCall& call, const LstmOperands& o) {
  const LstmShape& s = call.shape;
  const auto options = o.input.options();
  return {at::zeros(lstm_sizes(call, s.output), options),
          or_zeros(dense_or_undefined(o.h_0), {s.batch, s.output}, options),
          or_zeros(dense_or_undefined(o.c_0), {s.batch, s.hidden}, options)};
}

void check_lstm_backward_args(const LstmCall& call, const LstmGrads& grads, const LstmSaved& saved,
                              const Tensor& input) {
  const LstmShape& s = call.shape;
  const auto dtype = input.scalar_type();
  const auto sizes = lstm_sizes(call, s.output);
  if (grads.output.has_value()) check_lstm_tensor("grad_output", *grads.output, sizes, dtype);
  if (grads.h_n.has_value()) check_lstm_tensor("grad_h_n", *grads.h_n, {s.batch, s.output}, dtype);
  if (grads.c_n.has_value()) check_lstm_tensor("grad_c_n", *grads.c_n, {s.batch, s.hidden}, dtype);
  check_lstm_tensor("output", saved.output, sizes, dtype);
  check_lstm_tensor("gates", saved.gates, {lstm_saved_rows(call), s.gates()}, dtype);
  check_lstm_tensor("cells", saved.cells, {lstm_saved_rows(call), s.hidden}, dtype);
}

LstmGradients lstm_gradients_without_rows(const LstmCall& call, const LstmGrads& grads,
                                          const at::TensorOptions& options,
                                          std::array<bool, 8> mask) {
  const LstmShape& s = call.shape;
  const Tensor h = dense_or_undefined(grads.h_n), c = dense_or_undefined(grads.c_n);
  return {zeros_if(mask[0], lstm_sizes(call, s.input), options),
          mask[1] ? or_zeros(h, {s.batch, s.output}, options) : Tensor(),
          mask[2] ? or_zeros(c, {s.batch, s.hidden}, options) : Tensor(),
          zeros_if(mask[3], {s.gates(), s.input}, options),
          zeros_if(mask[4], {s.gates(), s.output}, options),
          zeros_if(mask[5], {s.gates()}, options),
          zeros_if(mask[6], {s.gates()}, options),
          zeros_if(mask[7], {s.output, s.hidden}, options)};
}

LstmGradients empty_lstm_gradients(const LstmCall& call, const at::TensorOptions& options,
                                   std::array<bool, 8> mask) {
  const LstmShape& s = call.shape;
  LstmGradients result;
  result.h_0 = empty_output({s.batch, s.output}, options, kContiguous);
  result.c_0 = empty_output({s.batch, s.hidden}, options, kContiguous);
  result.weight_ih = empty_if(mask[3], {s.gates(), s.input}, options);
  result.weight_hh = empty_if(mask[4], {s.gates(), s.output}, options);
  result.bias_ih = empty_if(mask[5] || mask[6], {s.gates()}, options);
  result.weight_hr = empty_if(mask[7], {s.output, s.hidden}, options);
  return result;
}

void share_bias_gradient(LstmGradients* gradients, std::array<bool, 8> mask) {
  // Two parameters must not share one gradient.
  if (mask[6]) gradients->bias_hh = mask[5] ? gradients->bias_ih.clone() : gradients->bias_ih;
  if (!mask[5]) gradients->bias_ih = Tensor();
}

}  // namespace fastconv::bindings
