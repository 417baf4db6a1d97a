// SPDX-License-Identifier: MIT
// Turns calls of conv2d.h into calls of the kernels of conv_block2d without activation (but the
// forward pass') and without pooling, behind which the gradient of the convolution is the one that
// is given.
#include "cuda/conv2d/conv2d_direct.h"

#include "cuda/conv_block2d/conv_block2d.h"
#include "cuda/conv_block2d/conv_block2d_direct.h"

namespace fastconv::cuda {
namespace {

ConvBlock2dShape block_shape(const Conv2dCall& call) {
  return {call.shape, Activation::kNone, 0.0f, BlockPool::kNone};
}

ConvBlock2dShape block_shape(const Conv2dForward& call) {
  return {call.shape, call.activation, call.negative_slope, BlockPool::kNone};
}

// The stride of a dimension of one position is never used.
bool is_contiguous(const Strides4& strides, int64_t images, int64_t channels, int64_t height,
                   int64_t width) {
  const Strides4 dense = contiguous_strides(channels, height, width);
  return (images == 1 || strides.batch == dense.batch) &&
         (channels == 1 || strides.channel == dense.channel) &&
         (height == 1 || strides.row == dense.row) &&
         (width == 1 || strides.column == dense.column);
}

bool weight_fits(const Conv2dShape& s, const Strides4& strides) {
  return is_contiguous(strides, s.out_channels, s.group_in_channels(), s.kernel_height,
                       s.kernel_width);
}

bool output_fits(const Conv2dShape& s, const Strides4& strides) {
  return is_contiguous(strides, s.batch, s.out_channels, s.out_height, s.out_width);
}

// The distance of a plane's taps, or 0 where they are not evenly spaced.
int64_t tap_stride(const Conv2dShape& s, const Strides4& weight) {
  if (s.kernel_height == 1) return weight.column;
  if (s.kernel_width == 1) return weight.row;
  return weight.row == s.kernel_width * weight.column ? weight.column : 0;
}

bool is_channels_last(const Strides4& strides, int64_t channels, int64_t height, int64_t width) {
  const Strides4 dense = channels_last_strides(channels, height, width);
  return strides.batch == dense.batch && strides.channel == 1 && strides.row == dense.row &&
         strides.column == dense.column;
}

bool forward_output_fits(const Conv2dShape& s, const Strides4& strides) {
  constexpr int64_t kVector = 4;
  return output_fits(s, strides) ||
         (s.out_channels % kVector == 0 &&
          is_channels_last(strides, s.out_channels, s.out_height, s.out_width));
}

ConvBlock2dBackward backward_of(const Conv2dCall& call, const void* grad_output) {
  ConvBlock2dBackward block{};
  block.shape = block_shape(call);
  block.device = call.device;
  block.grad_output = static_cast<const float*>(grad_output);
  block.workspace = call.workspace;
  return block;
}

ConvBlock2dBackward backward_of(const Conv2dGradWeight& call) {
  ConvBlock2dBackward block = backward_of(static_cast<const Conv2dCall&>(call), call.grad_output);
  block.input = static_cast<const float*>(call.input);
  block.input_strides = call.input_strides;
  block.grad_weight = static_cast<float*>(call.grad_weight);
  block.grad_bias = static_cast<float*>(call.grad_bias);
  return block;
}

}  // namespace

bool conv2d_direct_applies(const Conv2dForward& call) {
  return call.element == Conv2dElement::kFloat32 &&
         conv_block2d_applies_but_grad_input(block_shape(call)) &&
         tap_stride(call.shape, call.weight_strides) > 0 &&
         forward_output_fits(call.shape, call.output_strides);
}

bool conv2d_direct_applies(const Conv2dGradInput& call) {
  const Conv2dShape& s = call.shape;
  return call.element == Conv2dElement::kFloat32 && conv_block2d_applies(block_shape(call)) &&
         weight_fits(s, call.weight_strides) && output_fits(s, call.grad_output_strides) &&
         is_contiguous(call.grad_input_strides, s.batch, s.in_channels, s.in_height, s.in_width);
}

bool conv2d_direct_applies(const Conv2dGradWeight& call) {
  // Without images the block's kernels write nothing, not even zeros.
  return call.shape.batch > 0 && call.element == Conv2dElement::kFloat32 &&
         conv_block2d_applies_but_grad_input(block_shape(call)) &&
         weight_fits(call.shape, call.grad_weight_strides) &&
         output_fits(call.shape, call.grad_output_strides);
}

int64_t conv2d_direct_workspace_bytes(const Conv2dGradWeight& call) {
  return conv_block2d_backward_workspace_bytes(backward_of(call));
}

cudaError_t launch_conv2d_forward_direct(const Conv2dForward& call, cudaStream_t stream) {
  DirectConv conv =
      forward_conv(block_shape(call), static_cast<const float*>(call.input), call.input_strides,
                   static_cast<const float*>(call.weight), static_cast<const float*>(call.bias));
  conv.weight_out_stride = call.weight_strides.batch;
  conv.weight_in_stride = call.weight_strides.channel;
  conv.weight_tap_stride = tap_stride(call.shape, call.weight_strides);
  conv.output = static_cast<float*>(call.output);
  conv.output_strides = call.output_strides;
  return launch_direct_conv(conv, call.device, stream);
}

cudaError_t launch_conv2d_grad_input_direct(const Conv2dGradInput& call, cudaStream_t stream) {
  ConvBlock2dBackward block = backward_of(call, call.grad_output);
  block.weight = static_cast<const float*>(call.weight);
  block.grad_input = static_cast<float*>(call.grad_input);
  return launch_conv_block2d_backward(block, stream);
}

cudaError_t launch_conv2d_grad_weight_direct(const Conv2dGradWeight& call, cudaStream_t stream) {
  return launch_conv_block2d_backward(backward_of(call), stream);
}

}  // namespace fastconv::cuda
