// SPDX-License-Identifier: MIT
// Autograd of conv_block2d: one graph node for convolution, activation and pooling where the fused
// kernels serve the call, else the composed operators with nodes of their own. Only the input, the
// pooled output and the winning taps are saved. A backward pass that is differentiated itself
// (create_graph) composes the block again and lets its operators do it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "bindings/composed_gradients.h"
#include "bindings/conv_block2d_args.h"
#include "bindings/ops.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

constexpr int64_t kOne[] = {1, 1};
constexpr int64_t kTwo[] = {2, 2};

// Output and winning taps.
Tensor2 training_pass(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      const ConvBlock2dOptions& options) {
  return call_conv_block2d_training(input, weight, bias, options.conv.padding,
                                    activation_name(options.activation), options.negative_slope,
                                    pool_name(options.pool));
}

// Written by hand: the generic node of torch::autograd::Function costs three microseconds more, a
// fiftieth of a LeNet-5 step at batch 1.
class ConvBlock2dBackward : public torch::autograd::Node {
 public:
  ConvBlock2dBackward(const Tensor& input, const Tensor& weight, const Tensor& bias,
                      const ConvBlock2dOptions& options)
      : torch::autograd::Node(torch::autograd::collect_next_edges(input, weight, bias)),
        padding_{options.conv.padding[0], options.conv.padding[1]},
        activation_(options.activation),
        pool_(options.pool),
        negative_slope_(options.negative_slope),
        input_(input, /*is_output=*/false),
        weight_(weight, /*is_output=*/false),
        bias_(bias, /*is_output=*/false) {}

  // torch's pooling does not read its output in the backward pass, so a user may overwrite it
  // (dropout or an addition in place): it is saved without torch's check of its version, and made
  // again where that has changed.
  void save_results(const Tensor& output, const Tensor& offsets) {
    output_ = SavedVariable(output.variable_data(), /*is_output=*/false);
    output_version_ = output.unsafeGetTensorImpl()->version_counter();
    saved_version_ = output_version_.current_version();
    offsets_ = SavedVariable(offsets, /*is_output=*/false);
  }

  std::string name() const override { return "ConvBlock2dBackward"; }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable* saved : {&input_, &weight_, &bias_, &output_, &offsets_})
      saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard lock(mutex_);
    const Tensor input = input_.unpack(), weight = weight_.unpack(), bias = bias_.unpack();
    const Tensor saved_output = output_.unpack(), offsets = offsets_.unpack();
    if (!grads[0].defined()) return variable_list(3);
    const std::array<bool, 3> wanted = {task_should_compute_output(0),
                                        task_should_compute_output(1),
                                        task_should_compute_output(2)};
    const ConvBlock2dOptions options{
        {kOne, padding_, kOne, 1}, activation_, negative_slope_, pool_, kTwo, kTwo};
    if (at::GradMode::is_enabled())
      return composed_gradients({input, weight, bias}, wanted, grads, [&](const Tensors& t) {
        return Tensors{composed_block2d(t[0], t[1], if_defined(t[2]), options, /*on_torch=*/false)};
      });
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const bool overwritten = output_version_.current_version() != saved_version_;
    const Tensor output =
        overwritten ? std::get<0>(training_pass(input, weight, bias, options)) : saved_output;
    auto [grad_input, grad_weight, grad_bias] = call_conv_block2d_backward(
        grads[0], output, offsets, input, weight, bias, padding_, activation_name(activation_),
        negative_slope_, pool_name(pool_), wanted);
    return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
  }

 private:
  std::array<int64_t, 2> padding_;
  Activation activation_;
  PoolKind pool_;
  double negative_slope_;
  SavedVariable input_, weight_, bias_, output_, offsets_;
  c10::VariableVersion output_version_;
  uint32_t saved_version_ = 0;
};

Tensor differentiable_block2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                              const ConvBlock2dOptions& options) {
  const auto node =
      c10::make_intrusive<ConvBlock2dBackward>(input, weight, bias.value_or(Tensor()), options);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto [output, offsets] = training_pass(input, weight, bias, options);
  torch::autograd::set_history(output, node);
  node->save_results(output, offsets);
  return output;
}

Tensor conv_block2d_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups, std::string_view activation,
                             double negative_slope, std::string_view pool,
                             at::IntArrayRef pool_size, at::IntArrayRef pool_stride) {
  const ConvBlock2dOptions options = conv_block2d_options(
      stride, padding, dilation, groups, activation, negative_slope, pool, pool_size, pool_stride);
  const Tensor b = bias.value_or(Tensor());
  if (inside_functorch() || has_tangent(input) || has_tangent(weight) || has_tangent(b))
    return composed_block2d(input, weight, bias, options, /*on_torch=*/true);
  if (input.dim() == 3)
    return conv_block2d_autograd(input.unsqueeze(0), weight, bias, stride, padding, dilation,
                                 groups, activation, negative_slope, pool, pool_size, pool_stride)
        .squeeze(0);
  const bool differentiates = at::GradMode::is_enabled() &&
                              (requires_grad(input) || requires_grad(weight) || requires_grad(b));
  if (differentiates && conv_block2d_fuses(input, weight, bias, options))
    return differentiable_block2d(input, weight, bias, options);
  if (differentiates) return composed_block2d(input, weight, bias, options, /*on_torch=*/false);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_conv_block2d(input, weight, bias, options.conv, activation, negative_slope, pool,
                           pool_size, pool_stride);
}

// Under vmap: torch's own operators, which have batching rules.
Tensor conv_block2d_vmap(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups, std::string_view activation, double negative_slope,
                         std::string_view pool, at::IntArrayRef pool_size,
                         at::IntArrayRef pool_stride) {
  return composed_block2d(input, weight, bias,
                          conv_block2d_options(stride, padding, dilation, groups, activation,
                                               negative_slope, pool, pool_size, pool_stride),
                          /*on_torch=*/true);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("conv_block2d", &conv_block2d_autograd);
}

TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("conv_block2d", &conv_block2d_vmap);
}

}  // namespace fastconv::bindings
