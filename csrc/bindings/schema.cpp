// SPDX-License-Identifier: MIT
// Every operator fastconv registers, and the dispatcher calls that ops.h declares. Public operators
// mirror torch.nn.functional; those with a leading underscore are the halves that autograd needs.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <utility>

#include "bindings/ops.h"

TORCH_LIBRARY(fastconv, m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, int groups=1) -> Tensor");
  m.def(
      "_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, bool[3] output_mask) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "conv_block2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, "
      "int[2] padding=0, int[2] dilation=1, int groups=1, str activation=\"none\", "
      "float negative_slope=0.01, str pool=\"none\", int[2] pool_size=2, "
      "int[2] pool_stride=[]) -> Tensor");
  m.def(
      "_conv_block2d_training(Tensor input, Tensor weight, Tensor? bias, int[2] padding, "
      "str activation, float negative_slope, str pool) -> (Tensor, Tensor)");
  m.def(
      "_conv_block2d_backward(Tensor grad_output, Tensor output, Tensor offsets, Tensor input, "
      "Tensor weight, Tensor? bias, int[2] padding, str activation, float negative_slope, "
      "str pool, bool[3] output_mask) -> (Tensor, Tensor, Tensor)");
  m.def(
      "mlp(Tensor input, Tensor[] weights, Tensor[] biases, str activation=\"relu\", "
      "float negative_slope=0.01) -> Tensor");
  m.def(
      "_mlp_training(Tensor input, Tensor[] weights, Tensor[] biases, str activation, "
      "float negative_slope) -> Tensor[]");
  m.def(
      "_mlp_backward(Tensor grad_output, Tensor input, Tensor[] weights, Tensor[] hidden, "
      "str activation, float negative_slope, bool input_grad) -> Tensor[]");
  m.def(
      "batch_norm_training(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float momentum, float eps, bool relu) -> Tensor");
  m.def(
      "batch_norm_inference(Tensor input, Tensor running_mean, Tensor running_var, "
      "Tensor? weight, Tensor? bias, float eps, bool relu) -> Tensor");
  m.def(
      "_batch_norm_training(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float momentum, float eps, bool relu) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "_batch_norm_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor invstd, "
      "Tensor? weight, Tensor? bias, bool training, bool relu, bool[3] output_mask) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("relu(Tensor input) -> Tensor");
  m.def("relu_(Tensor(a!) input) -> ()");
  m.def("_relu_backward(Tensor grad_output, Tensor output) -> Tensor");
  m.def(
      "max_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, "
      "int[2] dilation=1, bool ceil_mode=False) -> Tensor");
  m.def(
      "max_pool2d_with_indices(Tensor input, int[2] kernel_size, int[2] stride=[], "
      "int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_training(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, "
      "int[2] dilation, bool ceil_mode) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_indices(Tensor offsets, SymInt[] input_size, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "_max_pool2d_backward(Tensor grad_output, Tensor offsets, SymInt[] input_size, "
      "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, "
      "bool channels_last) -> Tensor");
  m.def(
      "_max_pool2d_gather(Tensor source, Tensor offsets, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "avg_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, "
      "bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor");
  m.def(
      "_avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, int[2] kernel_size, "
      "int[2] stride, int[2] padding, bool ceil_mode, bool count_include_pad, "
      "int? divisor_override, bool channels_last) -> Tensor");
  m.def(
      "lstm_layer(Tensor input, Tensor? hx, Tensor? cx, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih=None, Tensor? bias_hh=None, Tensor? weight_hr=None, Tensor? lengths=None, "
      "Tensor? batch_sizes=None, bool reverse=False) -> (Tensor, Tensor, Tensor)");
  m.def(
      "lstm_cell(Tensor input, Tensor? hx, Tensor? cx, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih=None, Tensor? bias_hh=None) -> (Tensor, Tensor)");
  m.def(
      "_lstm_layer_training(Tensor input, Tensor? hx, Tensor? cx, Tensor weight_ih, "
      "Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr, Tensor? lengths, "
      "Tensor? batch_sizes, bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_lstm_layer_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, "
      "Tensor? hx, Tensor? cx, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? weight_hr, Tensor? lengths, Tensor? batch_sizes, bool reverse, "
      "Tensor output, Tensor gates, Tensor cells, bool[8] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

namespace fastconv::bindings {

namespace {

template <class Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

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

bool differentiates(const Tensor& tensor) {
  return at::GradMode::is_enabled() && requires_grad(tensor);
}

OptionalTensor if_defined(Tensor tensor) {
  return tensor.defined() ? OptionalTensor(std::move(tensor)) : std::nullopt;
}

bool runs_on_torch_kernels(at::ScalarType dtype) {
  return dtype != at::kFloat && dtype != at::kDouble;
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

Tensor call_conv_block2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const Conv2dOptions& conv, std::string_view activation,
                         double negative_slope, std::string_view pool, at::IntArrayRef pool_size,
                         at::IntArrayRef pool_stride) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, at::IntArrayRef,
                     at::IntArrayRef, at::IntArrayRef, int64_t, std::string_view, double,
                     std::string_view, at::IntArrayRef, at::IntArrayRef)>("fastconv::conv_block2d");
  return op.call(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups,
                 activation, negative_slope, pool, pool_size, pool_stride);
}

Tensor2 call_conv_block2d_training(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, at::IntArrayRef padding,
                                   std::string_view activation, double negative_slope,
                                   std::string_view pool) {
  static const auto op =
      find_op<Tensor2(const Tensor&, const Tensor&, const OptionalTensor&, at::IntArrayRef,
                      std::string_view, double, std::string_view)>(
          "fastconv::_conv_block2d_training");
  return op.call(input, weight, bias, padding, activation, negative_slope, pool);
}

Tensor3 call_conv_block2d_backward(const Tensor& grad_output, const Tensor& output,
                                   const Tensor& offsets, const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, at::IntArrayRef padding,
                                   std::string_view activation, double negative_slope,
                                   std::string_view pool, std::array<bool, 3> output_mask) {
  static const auto op =
      find_op<Tensor3(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const OptionalTensor&, at::IntArrayRef, std::string_view, double,
                      std::string_view, std::array<bool, 3>)>("fastconv::_conv_block2d_backward");
  return op.call(grad_output, output, offsets, input, weight, bias, padding, activation,
                 negative_slope, pool, output_mask);
}

Tensor call_mlp(const Tensor& input, at::TensorList weights, at::TensorList biases,
                std::string_view activation, double negative_slope) {
  static const auto op =
      find_op<Tensor(const Tensor&, at::TensorList, at::TensorList, std::string_view, double)>(
          "fastconv::mlp");
  return op.call(input, weights, biases, activation, negative_slope);
}

std::vector<Tensor> call_mlp_training(const Tensor& input, at::TensorList weights,
                                      at::TensorList biases, std::string_view activation,
                                      double negative_slope) {
  static const auto op =
      find_op<std::vector<Tensor>(const Tensor&, at::TensorList, at::TensorList, std::string_view,
                                  double)>("fastconv::_mlp_training");
  return op.call(input, weights, biases, activation, negative_slope);
}

std::vector<Tensor> call_mlp_backward(const Tensor& grad_output, const Tensor& input,
                                      at::TensorList weights, at::TensorList hidden,
                                      std::string_view activation, double negative_slope,
                                      bool input_grad) {
  static const auto op =
      find_op<std::vector<Tensor>(const Tensor&, const Tensor&, at::TensorList, at::TensorList,
                                  std::string_view, double, bool)>("fastconv::_mlp_backward");
  return op.call(grad_output, input, weights, hidden, activation, negative_slope, input_grad);
}

Tensor3 call_batch_norm_training(const Tensor& input, const BatchNormTensors& t,
                                 const BatchNormOptions& o) {
  static const auto op =
      find_op<Tensor3(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&, double, double, bool)>(
          "fastconv::_batch_norm_training");
  return op.call(input, t.weight, t.bias, t.running_mean, t.running_var, o.momentum, o.eps, o.relu);
}

Tensor call_batch_norm_inference(const Tensor& input, const BatchNormTensors& t,
                                 const BatchNormOptions& o) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                     const OptionalTensor&, double, bool)>("fastconv::batch_norm_inference");
  return op.call(input, *t.running_mean, *t.running_var, t.weight, t.bias, o.eps, o.relu);
}

Tensor3 call_batch_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                 const Tensor& invstd, const OptionalTensor& weight,
                                 const OptionalTensor& bias, bool training, bool relu,
                                 std::array<bool, 3> output_mask) {
  static const auto op = find_op<Tensor3(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                         const OptionalTensor&, const OptionalTensor&, bool, bool,
                                         std::array<bool, 3>)>("fastconv::_batch_norm_backward");
  return op.call(grad_output, input, mean, invstd, weight, bias, training, relu, output_mask);
}

Tensor call_max_pool2d(const Tensor& input, const PoolOptions& o) {
  static const auto op =
      find_op<Tensor(const Tensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                     at::IntArrayRef, bool)>("fastconv::max_pool2d");
  return op.call(input, o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode);
}

Tensor2 call_max_pool2d_with_indices(const Tensor& input, const PoolOptions& o) {
  static const auto op =
      find_op<Tensor2(const Tensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                      at::IntArrayRef, bool)>("fastconv::max_pool2d_with_indices");
  return op.call(input, o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode);
}

Tensor2 call_max_pool2d_training(const Tensor& input, const PoolOptions& o) {
  static const auto op =
      find_op<Tensor2(const Tensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                      at::IntArrayRef, bool)>("fastconv::_max_pool2d_training");
  return op.call(input, o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode);
}

Tensor call_max_pool2d_indices(const Tensor& offsets, c10::SymIntArrayRef input_size,
                               const PoolOptions& o) {
  static const auto op =
      find_op<Tensor(const Tensor&, c10::SymIntArrayRef, at::IntArrayRef, at::IntArrayRef,
                     at::IntArrayRef, at::IntArrayRef, bool)>("fastconv::_max_pool2d_indices");
  return op.call(offsets, input_size, o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode);
}

Tensor call_max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets,
                                c10::SymIntArrayRef input_size, const PoolOptions& o,
                                bool channels_last) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, c10::SymIntArrayRef, at::IntArrayRef,
                     at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, bool, bool)>(
          "fastconv::_max_pool2d_backward");
  return op.call(grad_output, offsets, input_size, o.kernel_size, o.stride, o.padding, o.dilation,
                 o.ceil_mode, channels_last);
}

Tensor call_max_pool2d_gather(const Tensor& source, const Tensor& offsets, const PoolOptions& o) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef,
                     at::IntArrayRef, at::IntArrayRef, bool)>("fastconv::_max_pool2d_gather");
  return op.call(source, offsets, o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode);
}

Tensor call_avg_pool2d(const Tensor& input, const AvgPoolOptions& o) {
  static const auto op =
      find_op<Tensor(const Tensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, bool, bool,
                     std::optional<int64_t>)>("fastconv::avg_pool2d");
  return op.call(input, o.kernel_size, o.stride, o.padding, o.ceil_mode, o.count_include_pad,
                 o.divisor_override);
}

Tensor call_avg_pool2d_backward(const Tensor& grad_output, c10::SymIntArrayRef input_size,
                                const AvgPoolOptions& o, bool channels_last) {
  static const auto op =
      find_op<Tensor(const Tensor&, c10::SymIntArrayRef, at::IntArrayRef, at::IntArrayRef,
                     at::IntArrayRef, bool, bool, std::optional<int64_t>, bool)>(
          "fastconv::_avg_pool2d_backward");
  return op.call(grad_output, input_size, o.kernel_size, o.stride, o.padding, o.ceil_mode,
                 o.count_include_pad, o.divisor_override, channels_last);
}

}  // namespace fastconv::bindings
