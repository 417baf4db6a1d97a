// SPDX-License-Identifier: MIT
// Autograd of batch normalisation, in training and with given statistics. Saved are the input and
// what normalised it; where a relu follows, the backward pass computes again which outputs were
// zero. A backward pass that is differentiated itself (create_graph) composes the layer again from
// torch's operators and lets those do it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "bindings/batch_norm_args.h"
#include "bindings/composed_gradients.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kTraining = "training";
constexpr const char* kRelu = "relu";
constexpr const char* kEps = "eps";

Tensor or_undefined(const OptionalTensor& tensor) {
  return tensor.value_or(Tensor());
}

bool any_requires_grad(const Tensor& input, const BatchNormTensors& t) {
  return at::GradMode::is_enabled() &&
         (requires_grad(input) || requires_grad(or_undefined(t.weight)) ||
          requires_grad(or_undefined(t.bias)));
}

// True when torch's own operator takes the call: under a torch.func transform, with forward-mode
// tangents, and for dtypes that the kernels do not serve.
bool is_for_torch(const Tensor& input, const BatchNormTensors& t) {
  if (inside_functorch() || has_tangent(input)) return true;
  for (const OptionalTensor* tensor : {&t.weight, &t.bias, &t.running_mean, &t.running_var})
    if (has_tangent(or_undefined(*tensor))) return true;
  return input.is_cpu() && !batch_norm_on_kernels(input, t);
}

// The layer by torch's operators, from the saved tensors: differentiable any number of times.
Tensor composed(const Tensor& input, const Tensor& mean, const Tensor& invstd, const Tensor& weight,
                const Tensor& bias, bool training, const BatchNormOptions& options) {
  if (training)
    return torch_batch_norm(input, {weight, bias, std::nullopt, std::nullopt}, true, options);
  std::vector<int64_t> per_channel(input.dim(), 1);
  per_channel[1] = -1;
  const Tensor scale = weight.defined() ? invstd * weight : invstd;
  Tensor output = (input - mean[0].view(per_channel)) * scale.view(per_channel);
  if (bias.defined()) output = output + bias.view(per_channel);
  return options.relu ? at::relu(output) : output;
}

// What autograd must know of tensors that changed, as with every operator of torch.
void count_changes(const BatchNormTensors& t) {
  for (const OptionalTensor* tensor : {&t.running_mean, &t.running_var})
    if (or_undefined(*tensor).defined() && !(*tensor)->is_inference())
      torch::autograd::impl::bump_version(**tensor);
}

struct BatchNormFunction : torch::autograd::Function<BatchNormFunction> {
  // The running statistics are no variables: nothing differentiates with respect to them.
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const BatchNormTensors& tensors, bool training,
                        const BatchNormOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Tensor output, mean, invstd;
    if (training) {
      std::tie(output, mean, invstd) = call_batch_norm_training(input, tensors, options);
      count_changes(tensors);
    } else {
      output = call_batch_norm_inference(input, tensors, options);
      // Copies: the statistics may move on before the backward pass.
      mean = at::stack({*tensors.running_mean, at::zeros_like(*tensors.running_mean)});
      // In double precision, as the kernels: where a relu follows, both passes must see the same
      // outputs above zero.
      const Tensor var = tensors.running_var->to(at::kDouble, false, /*copy=*/true);
      invstd = at::reciprocal(at::sqrt(var + options.eps)).to(input.scalar_type(), false, true);
    }
    ctx->save_for_backward({input, mean, invstd, or_undefined(weight), or_undefined(bias)});
    ctx->saved_data[kTraining] = training;
    ctx->saved_data[kRelu] = options.relu;
    ctx->saved_data[kEps] = options.eps;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &mean = saved[1], &invstd = saved[2], &weight = saved[3],
                 &bias = saved[4];
    const bool training = ctx->saved_data[kTraining].toBool();
    const BatchNormOptions options{0, ctx->saved_data[kEps].toDouble(),
                                   ctx->saved_data[kRelu].toBool()};
    // Absent vectors have no edge in the graph, so their places must not be asked for.
    const size_t bias_edge = weight.defined() ? 2 : 1;
    const std::array<bool, 3> mask{ctx->needs_input_grad(0),
                                   weight.defined() && ctx->needs_input_grad(1),
                                   bias.defined() && ctx->needs_input_grad(bias_edge)};
    variable_list result(6);
    if (!at::GradMode::is_enabled()) {
      std::tie(result[0], result[1], result[2]) = call_batch_norm_backward(
          grads[0], input, mean, invstd, weight, bias, training, options.relu, mask);
      return result;
    }
    const Tensors found =
        composed_gradients({input, weight, bias}, mask, {grads[0]}, [&](const Tensors& t) {
          return Tensors{composed(t[0], mean, invstd, t[1], t[2], training, options)};
        });
    std::copy(found.begin(), found.end(), result.begin());
    return result;
  }
};

Tensor batch_norm_training_autograd(const Tensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& running_mean,
                                    const OptionalTensor& running_var, double momentum, double eps,
                                    bool relu) {
  const BatchNormTensors tensors{weight, bias, running_mean, running_var};
  const BatchNormOptions options{momentum, eps, relu};
  check_batch_norm_call(input, tensors, /*training=*/true, eps);
  if (is_for_torch(input, tensors))
    return torch_batch_norm(input, tensors, /*training=*/true, options);
  if (any_requires_grad(input, tensors))
    return BatchNormFunction::apply(input, weight, bias, tensors, true, options);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor output = std::get<0>(call_batch_norm_training(input, tensors, options));
  count_changes(tensors);
  return output;
}

Tensor batch_norm_inference_autograd(const Tensor& input, const Tensor& running_mean,
                                     const Tensor& running_var, const OptionalTensor& weight,
                                     const OptionalTensor& bias, double eps, bool relu) {
  const BatchNormTensors tensors{weight, bias, running_mean, running_var};
  const BatchNormOptions options{0, eps, relu};
  check_batch_norm_call(input, tensors, /*training=*/false, eps);
  if (is_for_torch(input, tensors))
    return torch_batch_norm(input, tensors, /*training=*/false, options);
  if (any_requires_grad(input, tensors))
    return BatchNormFunction::apply(input, weight, bias, tensors, false, options);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_batch_norm_inference(input, tensors, options);
}

// Under vmap: torch's own operator, which has a batching rule.
Tensor batch_norm_training_vmap(const Tensor& input, const OptionalTensor& weight,
                                const OptionalTensor& bias, const OptionalTensor& running_mean,
                                const OptionalTensor& running_var, double momentum, double eps,
                                bool relu) {
  return torch_batch_norm(input, {weight, bias, running_mean, running_var}, /*training=*/true,
                          {momentum, eps, relu});
}

Tensor batch_norm_inference_vmap(const Tensor& input, const Tensor& running_mean,
                                 const Tensor& running_var, const OptionalTensor& weight,
                                 const OptionalTensor& bias, double eps, bool relu) {
  return torch_batch_norm(input, {weight, bias, running_mean, running_var}, /*training=*/false,
                          {0, eps, relu});
}

}  // namespace

bool joins_batch_norm(const Tensor& output) {
  const auto& node = output.grad_fn();
  auto* const norm = dynamic_cast<torch::autograd::CppNode<BatchNormFunction>*>(node.get());
  // The backward pass finds the mask from the normalisation's inputs: nothing may have changed the
  // result since, not even without a graph.
  if (norm == nullptr || node.use_count() != 1 || output._version() != 0) return false;
  if (!norm->pre_hooks().empty() || !norm->post_hooks().empty() ||
      !norm->tensor_pre_hooks().empty() || !norm->retains_grad_hooks().empty())
    return false;
  norm->ctx_.saved_data[kRelu] = true;
  return true;
}

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("batch_norm_training", &batch_norm_training_autograd);
  m.impl("batch_norm_inference", &batch_norm_inference_autograd);
}

TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("batch_norm_training", &batch_norm_training_vmap);
  m.impl("batch_norm_inference", &batch_norm_inference_vmap);
}

}  // namespace fastconv::bindings
