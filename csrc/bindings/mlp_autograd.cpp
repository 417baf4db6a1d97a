// SPDX-License-Identifier: MIT
// Autograd of mlp: one graph node for all layers, which saves the input and the hidden activations.
// A backward pass that is differentiated itself (create_graph) composes the layers again from
// torch's operators and lets those do it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "bindings/mlp_args.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kActivation = "activation";
constexpr const char* kSlope = "negative_slope";

struct MlpFunction : torch::autograd::Function<MlpFunction> {
  // `parameters` are all weights, then all biases.
  static Tensor forward(AutogradContext* ctx, const Tensor& input, at::TensorList parameters,
                        const MlpOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const size_t layers = parameters.size() / 2;
    std::vector<Tensor> outputs =
        call_mlp_training(input, parameters.slice(0, layers), parameters.slice(layers),
                          activation_name(options.activation), options.negative_slope);
    variable_list saved{input};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    saved.insert(saved.end(), outputs.begin(), outputs.end() - 1);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data[kActivation] = static_cast<int64_t>(options.activation);
    ctx->saved_data[kSlope] = options.negative_slope;
    return outputs.back();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const size_t layers = saved.size() / 3;  // input, 2 * layers parameters, layers - 1 outputs
    const at::TensorList all(saved);
    const at::TensorList weights = all.slice(1, layers), biases = all.slice(1 + layers, layers);
    const MlpOptions options{static_cast<Activation>(ctx->saved_data[kActivation].toInt()),
                             ctx->saved_data[kSlope].toDouble()};
    const bool input_grad = ctx->needs_input_grad(0);
    variable_list result(2 * layers + 2);
    if (at::GradMode::is_enabled()) {
      variable_list leaves(saved.begin() + (input_grad ? 0 : 1), saved.begin() + 1 + 2 * layers);
      const Tensor output = composed_mlp(saved[0], weights, biases, options);
      const variable_list dense = torch::autograd::grad({output}, leaves, {grads[0]},
                                                        /*retain_graph=*/true,
                                                        /*create_graph=*/true);
      std::copy(dense.begin(), dense.end(), result.begin() + (input_grad ? 0 : 1));
      return result;
    }
    const std::vector<Tensor> flat =
        call_mlp_backward(grads[0], saved[0], weights, all.slice(1 + 2 * layers),
                          activation_name(options.activation), options.negative_slope, input_grad);
    for (size_t l = 0; l < layers; ++l) {
      result[1 + l] = flat[2 * l];
      result[1 + layers + l] = flat[2 * l + 1];
    }
    if (input_grad) result[0] = flat.back();
    return result;
  }
};

Tensor mlp_autograd(const Tensor& input, at::TensorList weights, at::TensorList biases,
                    std::string_view activation, double negative_slope) {
  const MlpOptions options{parse_activation("mlp", activation), negative_slope};
  check_mlp_args(input, weights, biases);
  const auto any = [&](bool (*holds)(const Tensor&)) {
    return std::any_of(weights.begin(), weights.end(), holds) ||
           std::any_of(biases.begin(), biases.end(), holds);
  };
  if (inside_functorch() || has_tangent(input) || any(&has_tangent))
    return composed_mlp(input, weights, biases, options);
  const bool parameters_differ = any(&requires_grad);
  if (at::GradMode::is_enabled() && (requires_grad(input) || parameters_differ)) {
    // The fused backward pass computes all parameters' gradients: frozen layers go to torch.
    const bool all_differ = !any([](const Tensor& t) { return !t.requires_grad(); });
    if (!all_differ || !mlp_fuses(input, weights, biases, options))
      return composed_mlp(input, weights, biases, options);
    variable_list parameters(weights.begin(), weights.end());
    parameters.insert(parameters.end(), biases.begin(), biases.end());
    return MlpFunction::apply(input, at::TensorList(parameters), options);
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_mlp(input, weights, biases, activation, negative_slope);
}

// Under vmap: torch's own operators, which have batching rules.
Tensor mlp_vmap(const Tensor& input, at::TensorList weights, at::TensorList biases,
                std::string_view activation, double negative_slope) {
  return composed_mlp(input, weights, biases,
                      {parse_activation("mlp", activation), negative_slope});
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("mlp", &mlp_autograd);
}

TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("mlp", &mlp_vmap);
}

}  // namespace fastconv::bindings
