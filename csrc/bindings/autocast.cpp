// SPDX-License-Identifier: MIT
// Autocast policy: the ops compute in float32 whatever lower precision autocast asks for.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "bindings/lstm_args.h"
#include "bindings/ops.h"

namespace fastconv::bindings {
namespace {

Tensor to_float32(const Tensor& tensor) {
  return at::autocast::cached_cast(at::kFloat, tensor, c10::DeviceType::CPU);
}

Tensor conv2d_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       int64_t groups) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const OptionalTensor b = bias.has_value() ? OptionalTensor(to_float32(*bias)) : std::nullopt;
  return call_conv2d(to_float32(input), to_float32(weight), b, {stride, padding, dilation, groups});
}

Tensor conv_block2d_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups, std::string_view activation,
                             double negative_slope, std::string_view pool,
                             at::IntArrayRef pool_size, at::IntArrayRef pool_stride) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const OptionalTensor b = bias.has_value() ? OptionalTensor(to_float32(*bias)) : std::nullopt;
  return call_conv_block2d(to_float32(input), to_float32(weight), b,
                           {stride, padding, dilation, groups}, activation, negative_slope, pool,
                           pool_size, pool_stride);
}

std::vector<Tensor> to_float32(at::TensorList tensors) {
  std::vector<Tensor> cast;
  for (const Tensor& tensor : tensors) cast.push_back(to_float32(tensor));
  return cast;
}

Tensor mlp_autocast(const Tensor& input, at::TensorList weights, at::TensorList biases,
                    std::string_view activation, double negative_slope) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return call_mlp(to_float32(input), to_float32(weights), to_float32(biases), activation,
                  negative_slope);
}

Tensor max_pool2d_autocast(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return call_max_pool2d(to_float32(input), {kernel_size, stride, padding, dilation, ceil_mode});
}

Tensor2 max_pool2d_with_indices_autocast(const Tensor& input, at::IntArrayRef kernel_size,
                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                         at::IntArrayRef dilation, bool ceil_mode) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return call_max_pool2d_with_indices(to_float32(input),
                                      {kernel_size, stride, padding, dilation, ceil_mode});
}

Tensor avg_pool2d_autocast(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return call_avg_pool2d(to_float32(input), {kernel_size, stride, padding, ceil_mode,
                                             count_include_pad, divisor_override});
}

OptionalTensor to_float32(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(to_float32(*tensor)) : std::nullopt;
}

Tensor3 lstm_layer_autocast(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                            const Tensor& weight_ih, const Tensor& weight_hh,
                            const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                            const OptionalTensor& weight_hr, const OptionalTensor& lengths,
                            const OptionalTensor& batch_sizes, bool reverse) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return call_lstm_layer({to_float32(input), to_float32(hx), to_float32(cx), to_float32(weight_ih),
                          to_float32(weight_hh), to_float32(bias_ih), to_float32(bias_hh),
                          to_float32(weight_hr), lengths, batch_sizes, reverse});
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, AutocastCPU, m) {
  m.impl("conv2d", &conv2d_autocast);
  m.impl("conv_block2d", &conv_block2d_autocast);
  m.impl("mlp", &mlp_autocast);
  m.impl("max_pool2d", &max_pool2d_autocast);
  m.impl("max_pool2d_with_indices", &max_pool2d_with_indices_autocast);
  m.impl("avg_pool2d", &avg_pool2d_autocast);
  m.impl("lstm_layer", &lstm_layer_autocast);
}

}  // namespace fastconv::bindings
