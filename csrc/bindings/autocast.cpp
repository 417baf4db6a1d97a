// SPDX-License-Identifier: MIT
// Autocast policy. CPU: the ops compute in float32 whatever lower precision autocast asks for.
// CUDA: convolutions, LSTM layers and linear layers compute in the precision autocast asks for, as
// torch's do; pooling, as there, in that of its input.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "bindings/lstm_args.h"
#include "bindings/ops.h"

namespace fastconv::bindings {
namespace {

constexpr c10::DeviceType kCpu = c10::DeviceType::CPU, kCuda = c10::DeviceType::CUDA;

template <c10::DeviceType kDevice>
constexpr c10::DispatchKey kAutocastKey =
    kDevice == kCpu ? c10::DispatchKey::AutocastCPU : c10::DispatchKey::AutocastCUDA;

// Undefined and integer tensors stay as they are, and so do those of other devices.
template <c10::DeviceType kDevice>
Tensor cast(const Tensor& tensor) {
  const at::ScalarType type =
      kDevice == kCpu ? at::kFloat : at::autocast::get_autocast_dtype(kDevice);
  return at::autocast::cached_cast(type, tensor, kDevice);
}

template <c10::DeviceType kDevice>
OptionalTensor cast(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(cast<kDevice>(*tensor)) : std::nullopt;
}

template <c10::DeviceType kDevice>
std::vector<Tensor> cast(at::TensorList tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(cast<kDevice>(tensor));
  return result;
}

template <c10::DeviceType kDevice>
Tensor conv2d_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       int64_t groups) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocastKey<kDevice>);
  return call_conv2d(cast<kDevice>(input), cast<kDevice>(weight), cast<kDevice>(bias),
                     {stride, padding, dilation, groups});
}

template <c10::DeviceType kDevice>
Tensor conv_block2d_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups, std::string_view activation,
                             double negative_slope, std::string_view pool,
                             at::IntArrayRef pool_size, at::IntArrayRef pool_stride) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocastKey<kDevice>);
  return call_conv_block2d(cast<kDevice>(input), cast<kDevice>(weight), cast<kDevice>(bias),
                           {stride, padding, dilation, groups}, activation, negative_slope, pool,
                           pool_size, pool_stride);
}

template <c10::DeviceType kDevice>
Tensor mlp_autocast(const Tensor& input, at::TensorList weights, at::TensorList biases,
                    std::string_view activation, double negative_slope) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocastKey<kDevice>);
  return call_mlp(cast<kDevice>(input), cast<kDevice>(weights), cast<kDevice>(biases), activation,
                  negative_slope);
}

template <c10::DeviceType kDevice>
Tensor max_pool2d_autocast(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocastKey<kDevice>);
  return call_max_pool2d(cast<kDevice>(input), {kernel_size, stride, padding, dilation, ceil_mode});
}

template <c10::DeviceType kDevice>
Tensor2 max_pool2d_with_indices_autocast(const Tensor& input, at::IntArrayRef kernel_size,
                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                         at::IntArrayRef dilation, bool ceil_mode) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocastKey<kDevice>);
  return call_max_pool2d_with_indices(cast<kDevice>(input),
                                      {kernel_size, stride, padding, dilation, ceil_mode});
}

template <c10::DeviceType kDevice>
Tensor avg_pool2d_autocast(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocastKey<kDevice>);
  return call_avg_pool2d(cast<kDevice>(input), {kernel_size, stride, padding, ceil_mode,
                                                count_include_pad, divisor_override});
}

template <c10::DeviceType kDevice>
Tensor3 lstm_layer_autocast(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                            const Tensor& weight_ih, const Tensor& weight_hh,
                            const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                            const OptionalTensor& weight_hr, const OptionalTensor& lengths,
                            const OptionalTensor& batch_sizes, bool reverse) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocastKey<kDevice>);
  return call_lstm_layer({cast<kDevice>(input), cast<kDevice>(hx), cast<kDevice>(cx),
                          cast<kDevice>(weight_ih), cast<kDevice>(weight_hh),
                          cast<kDevice>(bias_ih), cast<kDevice>(bias_hh), cast<kDevice>(weight_hr),
                          lengths, batch_sizes, reverse});
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, AutocastCPU, m) {
  m.impl("conv2d", &conv2d_autocast<kCpu>);
  m.impl("conv_block2d", &conv_block2d_autocast<kCpu>);
  m.impl("mlp", &mlp_autocast<kCpu>);
  m.impl("max_pool2d", &max_pool2d_autocast<kCpu>);
  m.impl("max_pool2d_with_indices", &max_pool2d_with_indices_autocast<kCpu>);
  m.impl("avg_pool2d", &avg_pool2d_autocast<kCpu>);
  m.impl("lstm_layer", &lstm_layer_autocast<kCpu>);
}

TORCH_LIBRARY_IMPL(fastconv, AutocastCUDA, m) {
  m.impl("conv2d", &conv2d_autocast<kCuda>);
  m.impl("conv_block2d", &conv_block2d_autocast<kCuda>);
  m.impl("mlp", &mlp_autocast<kCuda>);
  m.impl("lstm_layer", &lstm_layer_autocast<kCuda>);
}

}  // namespace fastconv::bindings
