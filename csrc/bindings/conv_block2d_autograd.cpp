// SPDX-License-Identifier: MIT
// Autograd of conv_block2d: one graph node for convolution, activation and pooling where the fused
// kernels serve the call, else the composed operators with nodes of their own. Only the input, the
// pooled output and the winning taps are saved. A backward pass that is differentiated itself
// (create_graph) composes the block again and lets its operators do it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <bit>

#include "bindings/conv_block2d_args.h"
#include "bindings/ops.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOptions = "options";
constexpr int64_t kOne[] = {1, 1};
constexpr int64_t kTwo[] = {2, 2};

// What varies among fused calls, as a flat vector: padding, names, slope, whether there is a bias.
struct SavedOptions {
  SavedOptions(const ConvBlock2dOptions& o, bool has_bias)
      : values{o.conv.padding[0],
               o.conv.padding[1],
               static_cast<int64_t>(o.activation),
               static_cast<int64_t>(o.pool),
               std::bit_cast<int64_t>(o.negative_slope),
               has_bias} {}
  explicit SavedOptions(AutogradContext* ctx) : values(ctx->saved_data[kOptions].toIntVector()) {}

  ConvBlock2dOptions options() const {
    return {{kOne, at::IntArrayRef(values).slice(0, 2), kOne, 1},
            static_cast<Activation>(values[2]),
            std::bit_cast<double>(values[4]),
            static_cast<PoolKind>(values[3]),
            kTwo,
            kTwo};
  }
  bool has_bias() const { return values[5] != 0; }

  std::vector<int64_t> values;
};

// The gradients by way of the composed operators, differentiable again.
variable_list composed_backward(const Tensor& grad_output, const variable_list& leaves,
                                std::array<bool, 3> wanted, const ConvBlock2dOptions& options) {
  // A tensor whose gradient is asked for takes part as it is, with its history.
  const OptionalTensor bias = leaves[2].defined() ? OptionalTensor(leaves[2]) : std::nullopt;
  const Tensor output = composed_block2d(leaves[0], leaves[1], bias, options, /*on_torch=*/false);
  variable_list asked;
  for (size_t i = 0; i < 3; ++i)
    if (wanted[i]) asked.push_back(leaves[i]);
  const variable_list dense =
      torch::autograd::grad({output}, asked, {grad_output}, /*retain_graph=*/true,
                            /*create_graph=*/true);
  variable_list grads(3);
  size_t next = 0;
  for (size_t i = 0; i < 3; ++i)
    if (wanted[i]) grads[i] = dense[next++];
  return grads;
}

struct ConvBlock2dFunction : torch::autograd::Function<ConvBlock2dFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias, const ConvBlock2dOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [output, offsets] = call_conv_block2d_training(
        input, weight, bias, options.conv.padding, activation_name(options.activation),
        options.negative_slope, pool_name(options.pool));
    const Tensor b = bias.value_or(Tensor());
    ctx->save_for_backward({input, weight, b, output, offsets});
    ctx->saved_data[kOptions] = SavedOptions(options, b.defined()).values;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const SavedOptions saved_options(ctx);
    const ConvBlock2dOptions options = saved_options.options();
    // An absent bias has no edge in the graph, so its index must not be asked for.
    const std::array<bool, 3> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        saved_options.has_bias() && ctx->needs_input_grad(2)};
    if (at::GradMode::is_enabled()) {
      variable_list all = composed_backward(grads[0], saved, wanted, options);
      all.emplace_back();
      return all;
    }
    auto [grad_input, grad_weight, grad_bias] =
        call_conv_block2d_backward(grads[0], saved[3], saved[4], saved[0], saved[1], saved[2],
                                   options.conv.padding, activation_name(options.activation),
                                   options.negative_slope, pool_name(options.pool), wanted);
    return {grad_input, grad_weight, grad_bias, Tensor()};
  }
};

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
    return ConvBlock2dFunction::apply(input, weight, bias, options);
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
