// SPDX-License-Identifier: MIT
// Autograd of mlp: one graph node for all layers, which saves the input and the hidden activations.
// A backward pass that is differentiated itself (create_graph) composes the layers again from
// torch's operators and lets those do it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <algorithm>

#include "bindings/composed_gradients.h"
#include "bindings/mlp_args.h"
#include "bindings/plain_tensors.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Edges, and gradients: the input, all weights, all biases. Saved are these and the hidden
// activations. Written by hand as ConvBlock2dBackward is.
class MlpBackward : public torch::autograd::Node {
 public:
  MlpBackward(const Tensor& input, at::TensorList weights, at::TensorList biases,
              const MlpOptions& options)
      : torch::autograd::Node(torch::autograd::collect_next_edges(input, weights, biases)),
        options_(options),
        layers_(weights.size()) {
    saved_.reserve(3 * layers_);
    save(input);
    for (const Tensor& weight : weights) save(weight);
    for (const Tensor& bias : biases) save(bias);
  }

  void save(const Tensor& tensor) { saved_.emplace_back(tensor, /*is_output=*/false); }

  std::string name() const override { return "MlpBackward"; }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable& saved : saved_) saved.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard lock(mutex_);
    variable_list saved;
    saved.reserve(saved_.size());
    for (const SavedVariable& s : saved_) saved.push_back(s.unpack());
    if (!grads[0].defined()) return variable_list(1 + 2 * layers_);
    return at::GradMode::is_enabled() || !have_memory(grads) ? composed(grads[0], saved)
                                                             : fused(grads[0], saved);
  }

 private:
  // Gradients by torch's operators, which can be differentiated again and batched.
  variable_list composed(const Tensor& grad, const variable_list& saved) {
    const size_t operands = 1 + 2 * layers_;
    const Tensors all(saved.begin(), std::next(saved.begin(), operands));
    c10::SmallVector<bool, 16> wanted(operands, true);
    wanted[0] = task_should_compute_output(0);
    return composed_gradients(all, wanted, {grad}, [&](const Tensors& t) {
      const at::TensorList parameters = at::TensorList(t).slice(1);
      return Tensors{composed_mlp(t[0], parameters.slice(0, layers_),
                                  parameters.slice(layers_, layers_), options_)};
    });
  }

  variable_list fused(const Tensor& grad, const variable_list& saved) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::TensorList all(saved);
    const bool input_grad = task_should_compute_output(0);
    const std::vector<Tensor> flat = call_mlp_backward(
        grad, saved[0], all.slice(1, layers_), all.slice(1 + 2 * layers_),
        activation_name(options_.activation), options_.negative_slope, input_grad);
    variable_list result(1 + 2 * layers_);
    for (size_t l = 0; l < layers_; ++l) {
      result[1 + l] = flat[2 * l];
      result[1 + layers_ + l] = flat[2 * l + 1];
    }
    if (input_grad) result[0] = flat.back();
    return result;
  }

  MlpOptions options_;
  size_t layers_;
  std::vector<SavedVariable> saved_;
};

Tensor differentiable_mlp(const Tensor& input, at::TensorList weights, at::TensorList biases,
                          const MlpOptions& options) {
  const auto node = c10::make_intrusive<MlpBackward>(input, weights, biases, options);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  std::vector<Tensor> outputs = call_mlp_training(
      input, weights, biases, activation_name(options.activation), options.negative_slope);
  for (size_t l = 0; l + 1 < outputs.size(); ++l) node->save(outputs[l]);
  torch::autograd::set_history(outputs.back(), node);
  return outputs.back();
}

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
    return differentiable_mlp(input, weights, biases, options);
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
