// SPDX-License-Identifier: MIT
// Autograd of relu, out of place and in place. Saved is the output. The backward pass is linear in
// the gradient and its own adjoint, so differentiation never ends. In place on the result of a
// batch normalisation, there is no backward pass: the normalisation's does both.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "bindings/batch_norm_args.h"
#include "bindings/relu_args.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// True when torch's own operator takes the call.
bool is_for_torch(const Tensor& input) {
  return inside_functorch() || has_tangent(input) || (input.is_cpu() && !relu_on_kernels(input));
}

struct ReluFunction : torch::autograd::Function<ReluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, bool in_place) {
    Tensor output = input;
    if (in_place) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;  // mark_dirty counts the change
      at::relu_(output);
      ctx->mark_dirty({output});
    } else {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      output = call_relu(input);
    }
    ctx->save_for_backward({output});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {call_relu_backward(grads[0], ctx->get_saved_variables()[0]), Tensor()};
  }
};

struct ReluBackwardFunction : torch::autograd::Function<ReluBackwardFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& output) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({output});
    return call_relu_backward(grad_output, output);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {call_relu_backward(grads[0], ctx->get_saved_variables()[0]), Tensor()};
  }
};

Tensor relu_autograd(const Tensor& input) {
  if (is_for_torch(input)) return at::relu(input);
  if (differentiates(input)) return ReluFunction::apply(input, false);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_relu(input);
}

// Views and leaves are torch's: it knows what may be done to them.
void relu_in_place_autograd(const Tensor& input) {
  if (is_for_torch(input) || !differentiates(input) || input.is_view() || input.is_leaf()) {
    at::relu_(const_cast<Tensor&>(input));
  } else if (joins_batch_norm(input)) {
    at::AutoDispatchBelowAutograd counting_the_change;
    at::relu_(const_cast<Tensor&>(input));
  } else {
    ReluFunction::apply(input, true);
  }
}

Tensor relu_backward_autograd(const Tensor& grad_output, const Tensor& output) {
  if (differentiates(grad_output)) return ReluBackwardFunction::apply(grad_output, output);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_relu_backward(grad_output, output);
}

// Under vmap: torch's own operator, which has a batching rule.
Tensor relu_vmap(const Tensor& input) {
  return at::relu(input);
}

void relu_in_place_vmap(const Tensor& input) {
  at::relu_(const_cast<Tensor&>(input));
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("relu", &relu_autograd);
  m.impl("relu_", &relu_in_place_autograd);
  m.impl("_relu_backward", &relu_backward_autograd);
}

TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("relu", &relu_vmap);
  m.impl("relu_", &relu_in_place_vmap);
}

}  // namespace fastconv::bindings
