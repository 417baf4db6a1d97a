// SPDX-License-Identifier: MIT
// Autograd of an LSTM layer. First derivatives are the registered operator _lstm_layer_backward;
// where those must be differentiable themselves, they come from the composed layer
// (lstm_composed.cpp), whose operators torch differentiates any number of times. Plain CPU tensors
// take a node of their own (lstm_layer.cpp).
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "bindings/composed_gradients.h"
#include "bindings/lstm_args.h"
#include "bindings/lstm_layer.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kReverse = "reverse";
constexpr size_t kOperands = LstmOperands::kDifferentiable;

// Absent and undefined tensors are one thing from here on.
LstmOperands normalised(LstmOperands o) {
  for (OptionalTensor* t :
       {&o.h_0, &o.c_0, &o.bias_ih, &o.bias_hh, &o.weight_hr, &o.lengths, &o.batch_sizes})
    if (t->has_value() && !(*t)->defined()) t->reset();
  return o;
}

variable_list as_list(const Tensor8& t) {
  return {std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t),
          std::get<4>(t), std::get<5>(t), std::get<6>(t), std::get<7>(t)};
}

struct LstmFunction : torch::autograd::Function<LstmFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& h_0,
                               const OptionalTensor& c_0, const Tensor& weight_ih,
                               const Tensor& weight_hh, const OptionalTensor& bias_ih,
                               const OptionalTensor& bias_hh, const OptionalTensor& weight_hr,
                               const OptionalTensor& lengths, const OptionalTensor& batch_sizes,
                               bool reverse) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const LstmOperands o{input,   h_0,       c_0,     weight_ih,   weight_hh, bias_ih,
                         bias_hh, weight_hr, lengths, batch_sizes, reverse};
    const auto [output, h_n, c_n, gates, cells] = call_lstm_layer_training(o);
    variable_list saved;
    saved.reserve(kOperands + 5);
    for (const Tensor& t : o.differentiable()) saved.push_back(t);
    saved.push_back(lengths.value_or(Tensor()));
    saved.push_back(batch_sizes.value_or(Tensor()));
    saved.insert(saved.end(), {output, gates, cells});
    ctx->save_for_backward(saved);
    ctx->saved_data[kReverse] = reverse;
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({gates, cells});
    return {output, h_n, c_n, gates, cells};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const LstmOperands o = lstm_operands(saved, ctx->saved_data[kReverse].toBool());
    // Absent operands have no edge in the graph, so edges are counted over those present.
    std::array<bool, kOperands> mask{};
    size_t edge = 0;
    for (size_t i = 0; i < kOperands; ++i)
      mask[i] = saved[i].defined() && ctx->needs_input_grad(edge++);
    variable_list result(kOperands + 3);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    const LstmGrads given{if_defined(grads[0]), if_defined(grads[1]), if_defined(grads[2])};
    const variable_list found =
        at::GradMode::is_enabled()
            ? composed_lstm_gradients(given, o, mask)
            : as_list(call_lstm_layer_backward(given, o, {saved[10], saved[11], saved[12]}, mask));
    std::copy(found.begin(), found.end(), result.begin());
    return result;
  }
};

bool any_has_tangent(const LstmOperands& o) {
  for (const Tensor& t : o.differentiable())
    if (has_tangent(t)) return true;
  return false;
}

variable_list apply(const LstmOperands& o) {
  return LstmFunction::apply(o.input, o.h_0, o.c_0, o.weight_ih, o.weight_hh, o.bias_ih, o.bias_hh,
                             o.weight_hr, o.lengths, o.batch_sizes, o.reverse);
}

Tensor3 lstm_layer_autograd(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                            const Tensor& weight_ih, const Tensor& weight_hh,
                            const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                            const OptionalTensor& weight_hr, const OptionalTensor& lengths,
                            const OptionalTensor& batch_sizes, bool reverse) {
  const LstmOperands o = normalised({input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh,
                                     weight_hr, lengths, batch_sizes, reverse});
  if (is_plain_lstm(o)) return plain_lstm_layer(o, /*stacked=*/false);
  if (inside_functorch() || any_has_tangent(o)) return composed_lstm_layer(o);
  if (differentiates(o)) {
    const variable_list all = apply(o);
    return {all[0], all[1], all[2]};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_lstm_layer(o);
}

Tensor5 lstm_layer_training_autograd(const Tensor& input, const OptionalTensor& hx,
                                     const OptionalTensor& cx, const Tensor& weight_ih,
                                     const Tensor& weight_hh, const OptionalTensor& bias_ih,
                                     const OptionalTensor& bias_hh, const OptionalTensor& weight_hr,
                                     const OptionalTensor& lengths,
                                     const OptionalTensor& batch_sizes, bool reverse) {
  const LstmOperands o = normalised({input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh,
                                     weight_hr, lengths, batch_sizes, reverse});
  if (differentiates(o)) {
    const variable_list all = apply(o);
    return {all[0], all[1], all[2], all[3], all[4]};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_lstm_layer_training(o);
}

Tensor8 lstm_layer_backward_autograd(const OptionalTensor& grad_output,
                                     const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                                     const Tensor& input, const OptionalTensor& hx,
                                     const OptionalTensor& cx, const Tensor& weight_ih,
                                     const Tensor& weight_hh, const OptionalTensor& bias_ih,
                                     const OptionalTensor& bias_hh, const OptionalTensor& weight_hr,
                                     const OptionalTensor& lengths,
                                     const OptionalTensor& batch_sizes, bool reverse,
                                     const Tensor& output, const Tensor& gates, const Tensor& cells,
                                     std::array<bool, 8> output_mask) {
  const LstmOperands o = normalised({input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh,
                                     weight_hr, lengths, batch_sizes, reverse});
  const LstmGrads grads{grad_output, grad_h_n, grad_c_n};
  bool again = differentiates(o);
  for (const OptionalTensor& t : {grad_output, grad_h_n, grad_c_n})
    again = again || (at::GradMode::is_enabled() && t.has_value() && requires_grad(*t));
  if (again) {
    const variable_list g = composed_lstm_gradients(grads, o, output_mask);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_lstm_layer_backward(grads, o, {output, gates, cells}, output_mask);
}

// Under vmap: the composed layer, whose operators have batching rules.
Tensor3 lstm_layer_vmap(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                        const Tensor& weight_ih, const Tensor& weight_hh,
                        const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                        const OptionalTensor& weight_hr, const OptionalTensor& lengths,
                        const OptionalTensor& batch_sizes, bool reverse) {
  return composed_lstm_layer(normalised({input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh,
                                         weight_hr, lengths, batch_sizes, reverse}));
}

template <class Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

variable_list composed_lstm_gradients(const LstmGrads& grads, const LstmOperands& o,
                                      const std::array<bool, kOperands>& mask) {
  const auto or_undefined = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
  const std::array<Tensor, kOperands> operands = o.differentiable();
  return composed_gradients(
      {operands.begin(), operands.end()}, mask,
      {or_undefined(grads.output), or_undefined(grads.h_n), or_undefined(grads.c_n)},
      [&](Tensors all) {
        all.push_back(or_undefined(o.lengths));
        all.push_back(or_undefined(o.batch_sizes));
        const auto [output, h_n, c_n] = composed_lstm_layer(lstm_operands(all, o.reverse));
        return Tensors{output, h_n, c_n};
      });
}

Tensor3 call_lstm_layer(const LstmOperands& o) {
  static const auto op = find_op<decltype(lstm_layer_vmap)>("fastconv::lstm_layer");
  return op.call(o.input, o.h_0, o.c_0, o.weight_ih, o.weight_hh, o.bias_ih, o.bias_hh, o.weight_hr,
                 o.lengths, o.batch_sizes, o.reverse);
}

Tensor5 call_lstm_layer_training(const LstmOperands& o) {
  static const auto op =
      find_op<decltype(lstm_layer_training_autograd)>("fastconv::_lstm_layer_training");
  return op.call(o.input, o.h_0, o.c_0, o.weight_ih, o.weight_hh, o.bias_ih, o.bias_hh, o.weight_hr,
                 o.lengths, o.batch_sizes, o.reverse);
}

Tensor8 call_lstm_layer_backward(const LstmGrads& grads, const LstmOperands& o,
                                 const LstmSaved& saved, std::array<bool, 8> output_mask) {
  static const auto op =
      find_op<decltype(lstm_layer_backward_autograd)>("fastconv::_lstm_layer_backward");
  return op.call(grads.output, grads.h_n, grads.c_n, o.input, o.h_0, o.c_0, o.weight_ih,
                 o.weight_hh, o.bias_ih, o.bias_hh, o.weight_hr, o.lengths, o.batch_sizes,
                 o.reverse, saved.output, saved.gates, saved.cells, output_mask);
}

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("lstm_layer", &lstm_layer_autograd);
  m.impl("_lstm_layer_training", &lstm_layer_training_autograd);
  m.impl("_lstm_layer_backward", &lstm_layer_backward_autograd);
}

TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("lstm_layer", &lstm_layer_vmap);
}

}  // namespace fastconv::bindings
