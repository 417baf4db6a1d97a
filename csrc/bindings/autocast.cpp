// SPDX-License-Identifier: MIT
// Autocast policy: the ops compute in float32 whatever lower precision autocast asks for.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

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

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, AutocastCPU, m) {
  m.impl("conv2d", &conv2d_autocast);
}

}  // namespace fastconv::bindings
