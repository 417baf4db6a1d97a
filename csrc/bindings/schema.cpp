// SPDX-License-Identifier: MIT
// Every operator fastconv registers, and the dispatcher calls that ops.h declares. Public operators
// mirror torch.nn.functional; those with a leading underscore are the halves that autograd needs.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "bindings/ops.h"

TORCH_LIBRARY(fastconv, m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, int groups=1) -> Tensor");
  m.def(
      "_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, bool[3] output_mask) "
      "-> (Tensor, Tensor, Tensor)");
}

namespace fastconv::bindings {

bool inside_functorch() {
  // ATen/functorch/DynamicLayer.h would tell, but torch ships it without a header it includes
  // (nlohmann/json.hpp). The transforms keep one of these two keys switched on while they run.
  return c10::impl::tls_is_dispatch_key_included(
             c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

bool has_tangent(const Tensor& tensor) {
  return tensor.defined() && tensor._fw_grad(/*level=*/0).defined();
}

bool requires_grad(const Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad();
}

bool runs_on_torch_kernels(at::ScalarType dtype) {
  return dtype == at::kBFloat16 || dtype == at::kHalf;
}

Tensor call_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   const Conv2dOptions& options) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastconv::conv2d", "")
          .typed<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, at::IntArrayRef,
                        at::IntArrayRef, at::IntArrayRef, int64_t)>();
  return op.call(input, weight, bias, options.stride, options.padding, options.dilation,
                 options.groups);
}

Tensor3 call_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const Conv2dOptions& options, std::array<bool, 3> output_mask) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastconv::_conv2d_backward", "")
          .typed<Tensor3(const Tensor&, const Tensor&, const Tensor&, at::IntArrayRef,
                         at::IntArrayRef, at::IntArrayRef, int64_t, std::array<bool, 3>)>();
  return op.call(grad_output, input, weight, options.stride, options.padding, options.dilation,
                 options.groups, output_mask);
}

}  // namespace fastconv::bindings
