// SPDX-License-Identifier: MIT
// relu on CPU tensors: check, allocate, call the kernels.
#include "cpu/relu/relu.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "bindings/element_type.h"
#include "bindings/outputs.h"
#include "bindings/relu_args.h"

namespace fastconv::bindings {
namespace {

Tensor new_output(const Tensor& like) {
  return empty_output(like.sizes(), like.options(), like.suggest_memory_format());
}

Tensor relu_cpu(const Tensor& input) {
  if (!relu_on_kernels(input)) return at::relu(input);
  const Tensor output = new_output(input);
  dispatch_float_or_double(input, [&](auto type) {
    using T = decltype(type);
    cpu::relu_forward<T>({input.numel(), input.const_data_ptr<T>(), output.mutable_data_ptr<T>()});
  });
  return output;
}

void relu_in_place_cpu(const Tensor& input) {
  at::relu_(const_cast<Tensor&>(input));
}

Tensor relu_backward_cpu(const Tensor& grad_output, const Tensor& output) {
  TORCH_CHECK_VALUE(
      grad_output.sizes() == output.sizes() && grad_output.scalar_type() == output.scalar_type(),
      "relu: expected grad_output of shape ", output.sizes(), " and ", output.scalar_type(),
      ", got ", grad_output.sizes(), " and ", grad_output.scalar_type());
  TORCH_CHECK(relu_on_kernels(output), "relu: expected a dense float32 or float64 output, got ",
              output.scalar_type(), " with strides ", output.strides());
  const Tensor grad_input = new_output(output);
  const Tensor go = grad_output.contiguous(output.suggest_memory_format());
  dispatch_float_or_double(output, [&](auto type) {
    using T = decltype(type);
    cpu::relu_backward<T>({output.numel(), go.const_data_ptr<T>(), output.const_data_ptr<T>(),
                           grad_input.mutable_data_ptr<T>()});
  });
  return grad_input;
}

}  // namespace

bool relu_on_kernels(const Tensor& input) {
  return input.is_cpu() && !runs_on_torch_kernels(input.scalar_type()) &&
         input.is_contiguous(input.suggest_memory_format());
}

Tensor call_relu(const Tensor& input) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastconv::relu", "")
                             .typed<Tensor(const Tensor&)>();
  return op.call(input);
}

Tensor call_relu_backward(const Tensor& grad_output, const Tensor& output) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastconv::_relu_backward", "")
                             .typed<Tensor(const Tensor&, const Tensor&)>();
  return op.call(grad_output, output);
}

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("relu", &relu_cpu);
  m.impl("relu_", &relu_in_place_cpu);
  m.impl("_relu_backward", &relu_backward_cpu);
}

}  // namespace fastconv::bindings
