// SPDX-License-Identifier: MIT
// Autograd of max_pool2d and avg_pool2d. Both backward passes are linear in the gradient, and their
// adjoints are registered operators again (a gather at the winning taps, the average itself), so
// differentiation never ends. No input is saved: a maximum keeps one byte per output, an average
// nothing but sizes.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "bindings/ops.h"
#include "bindings/pool2d_args.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOptions = "options";
constexpr const char* kInputSize = "input_size";

// Appends the pair, or two zeros for a stride that was left out.
void append_pair(std::vector<int64_t>& values, at::IntArrayRef pair) {
  const bool given = !pair.empty();
  values.push_back(given ? pair[0] : 0);
  values.push_back(given ? pair[1] : 0);
}

// Arguments of one call as a flat vector, the form that AutogradContext keeps cheaply.
struct SavedOptions {
  SavedOptions(const PoolOptions& o, bool channels_last_) {
    values.reserve(10);
    for (const at::IntArrayRef pair : {o.kernel_size, o.stride, o.padding, o.dilation})
      append_pair(values, pair);
    values.push_back(o.ceil_mode);
    values.push_back(channels_last_);
  }
  SavedOptions(const AvgPoolOptions& o, bool channels_last_) {
    values.reserve(13);
    for (const at::IntArrayRef pair : {o.kernel_size, o.stride, o.padding})
      append_pair(values, pair);
    values.insert(values.end(), {0, 0, o.ceil_mode, channels_last_, o.count_include_pad,
                                 o.divisor_override.has_value(), o.divisor_override.value_or(0)});
  }
  explicit SavedOptions(AutogradContext* ctx) : values(ctx->saved_data[kOptions].toIntVector()) {}

  PoolOptions max_options() const { return {pair(0), stride(), pair(4), pair(6), values[8] != 0}; }
  AvgPoolOptions avg_options() const {
    return {pair(0),         stride(),
            pair(4),         values[8] != 0,
            values[10] != 0, values[11] != 0 ? std::optional<int64_t>(values[12]) : std::nullopt};
  }
  bool channels_last() const { return values[9] != 0; }

  at::IntArrayRef pair(size_t at) const { return at::IntArrayRef(values).slice(at, 2); }
  at::IntArrayRef stride() const { return values[2] == 0 ? at::IntArrayRef() : pair(2); }

  std::vector<int64_t> values;
};

void save_call(AutogradContext* ctx, SavedOptions options, c10::SymIntArrayRef input_size) {
  ctx->saved_data[kOptions] = std::move(options.values);
  ctx->saved_data[kInputSize] = input_size;
}

std::vector<c10::SymInt> saved_input_size(AutogradContext* ctx) {
  return ctx->saved_data[kInputSize].toSymIntVector();
}

struct MaxPool2dFunction : torch::autograd::Function<MaxPool2dFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input,
                               const PoolOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [output, offsets] = call_max_pool2d_training(input, options);
    save_call(ctx, {options, pools_channels_last(input)}, input.sym_sizes());
    ctx->save_for_backward({offsets});
    ctx->set_materialize_grads(false);  // the integer offsets have none
    return {output, offsets};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    const SavedOptions saved(ctx);
    return {call_max_pool2d_backward(grads[0], ctx->get_saved_variables()[0], saved_input_size(ctx),
                                     saved.max_options(), saved.channels_last()),
            Tensor()};
  }
};

struct MaxPool2dBackwardFunction : torch::autograd::Function<MaxPool2dBackwardFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& offsets,
                        c10::SymIntArrayRef input_size, const PoolOptions& options,
                        bool channels_last) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    save_call(ctx, {options, channels_last}, input_size);
    ctx->save_for_backward({offsets});
    return call_max_pool2d_backward(grad_output, offsets, input_size, options, channels_last);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const SavedOptions saved(ctx);
    return {call_max_pool2d_gather(grads[0], ctx->get_saved_variables()[0], saved.max_options()),
            Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct MaxPool2dGatherFunction : torch::autograd::Function<MaxPool2dGatherFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& source, const Tensor& offsets,
                        const PoolOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    save_call(ctx, {options, pools_channels_last(source)}, source.sym_sizes());
    ctx->save_for_backward({offsets});
    return call_max_pool2d_gather(source, offsets, options);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const SavedOptions saved(ctx);
    return {call_max_pool2d_backward(grads[0], ctx->get_saved_variables()[0], saved_input_size(ctx),
                                     saved.max_options(), saved.channels_last()),
            Tensor(), Tensor()};
  }
};

struct AvgPool2dFunction : torch::autograd::Function<AvgPool2dFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const AvgPoolOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    save_call(ctx, {options, pools_channels_last(input)}, input.sym_sizes());
    return call_avg_pool2d(input, options);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const SavedOptions saved(ctx);
    return {call_avg_pool2d_backward(grads[0], saved_input_size(ctx), saved.avg_options(),
                                     saved.channels_last()),
            Tensor()};
  }
};

struct AvgPool2dBackwardFunction : torch::autograd::Function<AvgPool2dBackwardFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output,
                        c10::SymIntArrayRef input_size, const AvgPoolOptions& options,
                        bool channels_last) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->saved_data[kOptions] = SavedOptions(options, channels_last).values;
    return call_avg_pool2d_backward(grad_output, input_size, options, channels_last);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const SavedOptions saved(ctx);
    return {call_avg_pool2d(grads[0], saved.avg_options()), Tensor(), Tensor(), Tensor()};
  }
};

// True when torch's own differentiable operator takes the call: under a torch.func transform, with
// forward-mode tangents, and for the dtypes that torch computes anyway.
bool torch_differentiates(const Tensor& input) {
  return inside_functorch() || has_tangent(input) ||
         (differentiates(input) && pools_on_torch(input));
}

Tensor max_pool2d_autograd(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  if (torch_differentiates(input))
    return at::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  const PoolOptions options{kernel_size, stride, padding, dilation, ceil_mode};
  if (differentiates(input)) return MaxPool2dFunction::apply(input, options)[0];
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_max_pool2d(input, options);
}

Tensor2 max_pool2d_with_indices_autograd(const Tensor& input, at::IntArrayRef kernel_size,
                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                         at::IntArrayRef dilation, bool ceil_mode) {
  if (torch_differentiates(input))
    return at::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
  const PoolOptions options{kernel_size, stride, padding, dilation, ceil_mode};
  if (differentiates(input)) {
    const variable_list pooled = MaxPool2dFunction::apply(input, options);
    return {pooled[0], call_max_pool2d_indices(pooled[1], input.sym_sizes(), options)};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_max_pool2d_with_indices(input, options);
}

Tensor2 max_pool2d_training_autograd(const Tensor& input, at::IntArrayRef kernel_size,
                                     at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation, bool ceil_mode) {
  const PoolOptions options{kernel_size, stride, padding, dilation, ceil_mode};
  if (differentiates(input)) {
    const variable_list pooled = MaxPool2dFunction::apply(input, options);
    return {pooled[0], pooled[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_max_pool2d_training(input, options);
}

Tensor max_pool2d_backward_autograd(const Tensor& grad_output, const Tensor& offsets,
                                    c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size,
                                    at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation, bool ceil_mode, bool channels_last) {
  const PoolOptions options{kernel_size, stride, padding, dilation, ceil_mode};
  if (differentiates(grad_output))
    return MaxPool2dBackwardFunction::apply(grad_output, offsets, input_size, options,
                                            channels_last);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_max_pool2d_backward(grad_output, offsets, input_size, options, channels_last);
}

Tensor max_pool2d_gather_autograd(const Tensor& source, const Tensor& offsets,
                                  at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                  at::IntArrayRef padding, at::IntArrayRef dilation,
                                  bool ceil_mode) {
  const PoolOptions options{kernel_size, stride, padding, dilation, ceil_mode};
  if (differentiates(source)) return MaxPool2dGatherFunction::apply(source, offsets, options);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_max_pool2d_gather(source, offsets, options);
}

Tensor avg_pool2d_autograd(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  if (torch_differentiates(input))
    return at::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                          divisor_override);
  const AvgPoolOptions options{kernel_size,       stride,          padding, ceil_mode,
                               count_include_pad, divisor_override};
  if (differentiates(input)) return AvgPool2dFunction::apply(input, options);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_avg_pool2d(input, options);
}

Tensor avg_pool2d_backward_autograd(const Tensor& grad_output, c10::SymIntArrayRef input_size,
                                    at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                    at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                    std::optional<int64_t> divisor_override, bool channels_last) {
  const AvgPoolOptions options{kernel_size,       stride,          padding, ceil_mode,
                               count_include_pad, divisor_override};
  if (differentiates(grad_output))
    return AvgPool2dBackwardFunction::apply(grad_output, input_size, options, channels_last);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_avg_pool2d_backward(grad_output, input_size, options, channels_last);
}

// Under vmap: torch's own operators, which have batching rules.
Tensor max_pool2d_vmap(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  return at::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
}

Tensor2 max_pool2d_with_indices_vmap(const Tensor& input, at::IntArrayRef kernel_size,
                                     at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation, bool ceil_mode) {
  return at::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
}

Tensor avg_pool2d_vmap(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                       std::optional<int64_t> divisor_override) {
  return at::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                        divisor_override);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, Autograd, m) {
  m.impl("max_pool2d", &max_pool2d_autograd);
  m.impl("max_pool2d_with_indices", &max_pool2d_with_indices_autograd);
  m.impl("_max_pool2d_training", &max_pool2d_training_autograd);
  m.impl("_max_pool2d_backward", &max_pool2d_backward_autograd);
  m.impl("_max_pool2d_gather", &max_pool2d_gather_autograd);
  m.impl("avg_pool2d", &avg_pool2d_autograd);
  m.impl("_avg_pool2d_backward", &avg_pool2d_backward_autograd);
}

TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("max_pool2d", &max_pool2d_vmap);
  m.impl("max_pool2d_with_indices", &max_pool2d_with_indices_vmap);
  m.impl("avg_pool2d", &avg_pool2d_vmap);
}

}  // namespace fastconv::bindings
