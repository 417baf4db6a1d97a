// SPDX-License-Identifier: MIT
// fastconv::conv_block2d and its halves on CUDA tensors: check, allocate, launch the kernels. What
// they do not serve, layers of many channels above all, is the convolution with bias, activation
// and, where it can, pooling in its epilogue; with a graph, the composed operators and their nodes.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "bindings/conv2d_cuda.h"
#include "bindings/conv_block2d_args.h"
#include "bindings/cuda_call.h"
#include "bindings/outputs.h"
#include "bindings/strides.h"
#include "cuda/conv_block2d/conv_block2d.h"

namespace fastconv::bindings {
namespace {

constexpr const char* kOp = "conv_block2d";

const float* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

cuda::BlockPool block_pool(PoolKind pool) {
  static_assert(static_cast<int>(PoolKind::kMax) == static_cast<int>(cuda::BlockPool::kMax) &&
                static_cast<int>(PoolKind::kAvg) == static_cast<int>(cuda::BlockPool::kAvg));
  return static_cast<cuda::BlockPool>(pool);
}

// The fused call's sizes; throws where it has none.
cuda::ConvBlock2dShape parse_shape(const Tensor& input, const Tensor& weight, const Tensor& bias,
                                   const ConvBlock2dOptions& o) {
  return {parse_fused_args(input, weight, bias, o), o.activation,
          static_cast<float>(o.negative_slope), block_pool(o.pool)};
}

// `offsets` may be undefined: an inference pass records none.
Tensor run_forward(const cuda::ConvBlock2dShape& shape, const Tensor& input, const Tensor& weight,
                   const Tensor& bias, const Tensor& offsets) {
  const CudaCall cuda_call(kOp, {{"input", input}, {"weight", weight}, {"bias", bias}});
  const Conv2dShape& s = shape.conv;
  Tensor output =
      empty_output({s.batch, s.out_channels, shape.pooled_height(), shape.pooled_width()},
                   input.options(), at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return output;
  const Tensor w = weight.contiguous();
  const Tensor b = bias.defined() ? bias.contiguous() : bias;
  const cuda::ConvBlock2dForward call{
      shape,
      cuda_call.device(),
      input.const_data_ptr<float>(),
      strides_of(input),
      w.const_data_ptr<float>(),
      data_or_null(b),
      output.mutable_data_ptr<float>(),
      offsets.defined() ? offsets.mutable_data_ptr<uint8_t>() : nullptr};
  cuda_call.check(cuda::launch_conv_block2d_forward(call, cuda_call.stream()));
  return output;
}

// Activation, pooling and their convolution in one kernel if there is one, else in two.
Tensor run_epilogue(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                    const ConvBlock2dOptions& o) {
  constexpr cuda::Conv2dPool kNoPool = {cuda::BlockPool::kNone, 0, 0};
  const bool side_by_side =
      o.pool_size.size() == 2 && (o.pool_stride.empty() || o.pool_stride == o.pool_size);
  if (o.pool != PoolKind::kNone && side_by_side && input.dim() == 4) {
    const Tensor pooled = conv2d_fused_cuda(
        input, weight, bias, o.conv,
        {o.activation, o.negative_slope, {block_pool(o.pool), o.pool_size[0], o.pool_size[1]}});
    if (pooled.defined()) return pooled;
  }
  return pooled_block2d(
      conv2d_fused_cuda(input, weight, bias, o.conv, {o.activation, o.negative_slope, kNoPool}), o);
}

Tensor conv_block2d_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups, std::string_view activation, double negative_slope,
                         std::string_view pool, at::IntArrayRef pool_size,
                         at::IntArrayRef pool_stride) {
  const ConvBlock2dOptions options = conv_block2d_options(
      stride, padding, dilation, groups, activation, negative_slope, pool, pool_size, pool_stride);
  if (!conv_block2d_fuses(input, weight, bias, options)) {
    // The launchers carry a leaky ReLU's slope as float32.
    if (input.scalar_type() == at::kDouble)
      return composed_block2d(input, weight, bias, options, /*on_torch=*/false);
    return run_epilogue(input, weight, bias, options);
  }
  const Tensor b = bias.value_or(Tensor());
  return run_forward(parse_shape(input, weight, b, options), input, weight, b, Tensor());
}

Tensor2 conv_block2d_training_cuda(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, at::IntArrayRef padding,
                                   std::string_view activation, double negative_slope,
                                   std::string_view pool) {
  const ConvBlock2dOptions options = fused_options(padding, activation, negative_slope, pool);
  const Tensor b = bias.value_or(Tensor());
  const cuda::ConvBlock2dShape shape = parse_shape(input, weight, b, options);
  const int64_t bytes = cuda::conv_block2d_offset_bytes(shape);
  const Tensor offsets = at::empty({shape.conv.batch, bytes}, input.options().dtype(at::kByte));
  Tensor output = run_forward(shape, input, weight, b, bytes == 0 ? Tensor() : offsets);
  return {output, offsets};
}

Tensor3 conv_block2d_backward_cuda(const Tensor& grad_output, const Tensor& output,
                                   const Tensor& offsets, const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, at::IntArrayRef padding,
                                   std::string_view activation, double negative_slope,
                                   std::string_view pool, std::array<bool, 3> output_mask) {
  const ConvBlock2dOptions options = fused_options(padding, activation, negative_slope, pool);
  const Tensor b = bias.has_value() && bias->defined() ? bias->contiguous() : Tensor();
  const cuda::ConvBlock2dShape shape = parse_shape(input, weight, b, options);
  const int64_t outputs[] = {shape.conv.batch, shape.conv.out_channels, shape.pooled_height(),
                             shape.pooled_width()};
  check_fused_saved(outputs, cuda::conv_block2d_offset_bytes(shape), grad_output, output, offsets);
  CudaCall cuda_call(kOp, {{"input", input},
                           {"weight", weight},
                           {"bias", b},
                           {"grad_output", grad_output},
                           {"output", output},
                           {"offsets", offsets}});
  const auto gradient = [&](bool wanted, at::IntArrayRef sizes) {
    return wanted ? empty_output(sizes, input.options(), at::MemoryFormat::Contiguous) : Tensor();
  };
  const int64_t channels[] = {shape.conv.out_channels};
  Tensor grad_input = gradient(output_mask[0], input.sizes());
  Tensor grad_weight = gradient(output_mask[1], weight.sizes());
  Tensor grad_bias = gradient(output_mask[2], channels);
  if (grad_output.numel() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    if (grad_bias.defined()) grad_bias.zero_();
    return {grad_input, grad_weight, grad_bias};
  }
  const Tensor go = grad_output.contiguous(), y = output.contiguous(), taps = offsets.contiguous();
  const Tensor w = weight.contiguous();
  const auto target = [](const Tensor& t) {
    return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
  };
  cuda::ConvBlock2dBackward call{shape,
                                 cuda_call.device(),
                                 go.const_data_ptr<float>(),
                                 y.const_data_ptr<float>(),
                                 taps.const_data_ptr<uint8_t>(),
                                 input.const_data_ptr<float>(),
                                 strides_of(input),
                                 w.const_data_ptr<float>(),
                                 data_or_null(b),
                                 target(grad_input),
                                 target(grad_weight),
                                 target(grad_bias),
                                 /*workspace=*/nullptr};
  call.workspace = cuda_call.workspace(cuda::conv_block2d_backward_workspace_bytes(call));
  cuda_call.check(cuda::launch_conv_block2d_backward(call, cuda_call.stream()));
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("conv_block2d", &conv_block2d_cuda);
  m.impl("_conv_block2d_training", &conv_block2d_training_cuda);
  m.impl("_conv_block2d_backward", &conv_block2d_backward_cuda);
}

}  // namespace fastconv::bindings
