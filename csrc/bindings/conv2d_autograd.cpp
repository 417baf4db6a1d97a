// SPDX-License-Identifier: MIT
// Autograd of conv2d. One graph node, whose backward is the registered operator _conv2d_backward;
// that is differentiable itself: all three gradients are bilinear, so their derivatives are
// convolutions again and differentiation never ends.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "bindings/ops.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

constexpr const char* kOptions = "options";
constexpr const char* kMask = "mask";

std::vector<int64_t> values_of(const Conv2dOptions& o) {
  return {o.stride.front(),   o.stride.back(),   o.padding.front(), o.padding.back(),
          o.dilation.front(), o.dilation.back(), o.groups};
}

// The arrays behind the views of Conv2dOptions.
struct SavedOptions {
  explicit SavedOptions(const Conv2dOptions& options) : values(values_of(options)) {}
  explicit SavedOptions(AutogradContext* ctx) : values(ctx->saved_data[kOptions].toIntVector()) {}
  Conv2dOptions options() const {
    const at::IntArrayRef v(values);
    return {v.slice(0, 2), v.slice(2, 2), v.slice(4, 2), v[6]};
  }
  std::vector<int64_t> values;
};

// Written by hand as ConvBlock2dBackward is.
class Conv2dBackward : public torch::autograd::Node {
 public:
  Conv2dBackward(const Tensor& input, const Tensor& weight, const Tensor& bias,
                 const Conv2dOptions& options)
      : torch::autograd::Node(torch::autograd::collect_next_edges(input, weight, bias)),
        options_(options),
        input_(input, /*is_output=*/false),
        weight_(weight, /*is_output=*/false) {}

  std::string name() const override { return "Conv2dBackward"; }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    input_.reset_data();
    weight_.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard lock(mutex_);
    const Tensor input = input_.unpack(), weight = weight_.unpack();
    if (!grads[0].defined()) return variable_list(3);
    const std::array<bool, 3> wanted = {task_should_compute_output(0),
                                        task_should_compute_output(1),
                                        task_should_compute_output(2)};
    std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd;
    if (!at::GradMode::is_enabled()) below_autograd.emplace();
    auto [grad_input, grad_weight, grad_bias] =
        call_conv2d_backward(grads[0], input, weight, options_.options(), wanted);
    return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
  }

 private:
  SavedOptions options_;
  SavedVariable input_, weight_;
};

Tensor differentiable_conv2d(const Tensor& input, const Tensor& weight, const Tensor& bias,
                             const Conv2dOptions& options) {
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    output = call_conv2d(input, weight, if_defined(bias), options);  // checks what it is given
  }
  torch::autograd::set_history(output,
                               c10::make_intrusive<Conv2dBackward>(input, weight, bias, options));
  return output;
}

Tensor sum_defined(const Tensor& a, const Tensor& b) {
  if (!a.defined()) return b;
  return b.defined() ? a + b : a;
}

// Puts the tensors that a mask let through back into their three places.
std::array<Tensor, 3> spread_by_mask(const std::vector<bool>& mask, const variable_list& dense) {
  std::array<Tensor, 3> spread;
  size_t next = 0;
  for (size_t i = 0; i < 3; ++i)
    if (mask[i]) spread[i] = dense[next++];
  return spread;
}

struct Conv2dBackwardFunction : torch::autograd::Function<Conv2dBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const Tensor& weight, const Conv2dOptions& options,
                               std::array<bool, 3> output_mask) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor3 all = call_conv2d_backward(grad_output, input, weight, options, output_mask);
    ctx->save_for_backward({grad_output, input, weight});
    ctx->saved_data[kOptions] = values_of(options);
    ctx->saved_data[kMask] = std::vector<bool>(output_mask.begin(), output_mask.end());
    variable_list asked;  // a Function must not return undefined tensors
    if (output_mask[0]) asked.push_back(std::get<0>(all));
    if (output_mask[1]) asked.push_back(std::get<1>(all));
    if (output_mask[2]) asked.push_back(std::get<2>(all));
    return asked;
  }

  // u, v, w are the gradients with respect to grad_input, grad_weight and grad_bias.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad_output = saved[0], &input = saved[1], &weight = saved[2];
    const SavedOptions saved_options(ctx);
    const Conv2dOptions options = saved_options.options();
    const auto spread = spread_by_mask(ctx->saved_data[kMask].toBoolList().vec(), grads);
    const Tensor &u = spread[0], &v = spread[1], &w = spread[2];

    Tensor to_grad_output, to_input, to_weight;
    if (ctx->needs_input_grad(0)) {
      if (u.defined()) to_grad_output = call_conv2d(u, weight, std::nullopt, options);
      if (v.defined())
        to_grad_output = sum_defined(to_grad_output, call_conv2d(input, v, std::nullopt, options));
      if (w.defined())
        to_grad_output = sum_defined(to_grad_output, w.reshape({-1, 1, 1}).expand_as(grad_output));
    }
    if (ctx->needs_input_grad(1) && v.defined())
      to_input =
          std::get<0>(call_conv2d_backward(grad_output, input, v, options, {true, false, false}));
    if (ctx->needs_input_grad(2) && u.defined())
      to_weight =
          std::get<1>(call_conv2d_backward(grad_output, u, weight, options, {false, true, false}));
    return {to_grad_output, to_input, to_weight, Tensor(), Tensor()};
  }
};

Tensor conv2d_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       int64_t groups) {
  const Tensor b = bias.value_or(Tensor());
  // torch splits complex convolutions into real ones above its differentiable operator.
  if (inside_functorch() || has_tangent(input) || has_tangent(weight) || has_tangent(b) ||
      at::isComplexType(input.scalar_type()))
    return at::conv2d(input, weight, bias, stride, padding, dilation, groups);
  const Conv2dOptions options{stride, padding, dilation, groups};
  if (at::GradMode::is_enabled() &&
      (requires_grad(input) || requires_grad(weight) || requires_grad(b)))
    return differentiable_conv2d(input, weight, b, options);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_conv2d(input, weight, bias, options);
}

Tensor3 conv2d_backward_autograd(const Tensor& grad_output, const Tensor& input,
                                 const Tensor& weight, at::IntArrayRef stride,
                                 at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                 std::array<bool, 3> output_mask) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  if (at::GradMode::is_enabled() &&
      (requires_grad(grad_output) || requires_grad(input) || requires_grad(weight))) {
    const auto grads = spread_by_mask(
        std::vector<bool>(output_mask.begin(), output_mask.end()),
        Conv2dBackwardFunction::apply(grad_output, input, weight, options, output_mask));
    return {grads[0], grads[1], grads[2]};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_conv2d_backward(grad_output, input, weight, options, output_mask);
}

// Under vmap: torch's own operator, which has a batching rule.
Tensor conv2d_vmap(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   int64_t groups) {
  return at::conv2d(input, weight, bias, stride, padding, dilation, groups);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("conv2d", &conv2d_autograd);
  m.impl("_conv2d_backward", &conv2d_backward_autograd);
}

TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("conv2d", &conv2d_vmap);
}

}  // namespace fastconv::bindings
