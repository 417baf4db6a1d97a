// SPDX-License-Identifier: MIT
// Which shapes are served, and the forward pass: one launch of the direct kernel.
#include "cuda/conv_block2d/conv_block2d.h"
#include "cuda/conv_block2d/conv_block2d_direct.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kMaxKernel = 7;
constexpr int64_t kMaxStride = 4;   // tiles in shared memory grow with its square
constexpr int64_t kMaxDepth = 256;  // products per output: input channels times taps
constexpr int64_t kMaxChannels = 1 << 16;
constexpr int64_t kMaxPlane = int64_t{1} << 30;
// More than a few input channels make tensor cores worth their extra kernels, unless the layer is
// so small that the launches are all there is.
constexpr int64_t kFewChannels = 4;
constexpr int64_t kMaxImageMultiplyAdds = 1'000'000;

}  // namespace

bool conv_block2d_applies(const ConvBlock2dShape& shape) {
  return shape.conv.stride_height == 1 && shape.conv.stride_width == 1 &&
         conv_block2d_applies_but_grad_input(shape);
}

bool conv_block2d_applies_but_grad_input(const ConvBlock2dShape& shape) {
  const Conv2dShape& s = shape.conv;
  if (s.groups != 1 || s.stride_height > kMaxStride || s.stride_width > kMaxStride ||
      s.dilation_height != 1 || s.dilation_width != 1 || s.in_channels < 1 || s.out_channels < 1 ||
      s.kernel_height < 1 || s.kernel_width < 1 || s.kernel_height > kMaxKernel ||
      s.kernel_width > kMaxKernel || s.out_height < 1 || s.out_width < 1 || shape.cells() < 1)
    return false;
  const bool steps = s.stride_height > 1 || s.stride_width > 1;
  if (steps && shape.pool == BlockPool::kMax) return false;
  if (shape.activation == Activation::kLeakyRelu && !(shape.negative_slope >= 0)) return false;
  if (s.in_channels > kMaxChannels || s.out_channels > kMaxChannels) return false;
  for (const int64_t size :
       {s.in_height, s.in_width, s.out_height, s.out_width, s.padding_height, s.padding_width})
    if (size > kMaxPlane) return false;
  if (s.out_height * s.stride_height > kMaxPlane || s.out_width * s.stride_width > kMaxPlane)
    return false;
  if (s.in_pixels() > kMaxPlane || s.out_pixels() > kMaxPlane) return false;
  if (s.in_channels * s.taps() > kMaxDepth) return false;
  return s.in_channels <= kFewChannels ||
         s.out_channels * s.out_pixels() * s.in_channels * s.taps() <= kMaxImageMultiplyAdds;
}

int64_t conv_block2d_offset_bytes(const ConvBlock2dShape& shape) {
  return shape.pool == BlockPool::kMax ? shape.conv.out_channels * shape.cells() : 0;
}

DirectConv forward_conv(const ConvBlock2dShape& shape, const float* input,
                        const Strides4& input_strides, const float* weight, const float* bias) {
  const Conv2dShape& s = shape.conv;
  DirectConv conv{};
  conv.batch = s.batch;
  conv.in_channels = s.in_channels;
  conv.in_height = s.in_height;
  conv.in_width = s.in_width;
  conv.out_channels = s.out_channels;
  conv.out_height = s.out_height;
  conv.out_width = s.out_width;
  conv.kernel_height = s.kernel_height;
  conv.kernel_width = s.kernel_width;
  conv.padding_height = s.padding_height;
  conv.padding_width = s.padding_width;
  conv.stride_height = s.stride_height;
  conv.stride_width = s.stride_width;
  conv.input = input;
  conv.input_strides = input_strides;
  conv.weight = weight;
  conv.weight_out_stride = s.in_channels * s.taps();
  conv.weight_in_stride = s.taps();
  conv.weight_tap_stride = 1;
  conv.bias = bias;
  conv.activation = shape.activation;
  conv.slope = shape.negative_slope;
  conv.pool = shape.pool;
  return conv;
}

cudaError_t launch_conv_block2d_forward(const ConvBlock2dForward& call, cudaStream_t stream) {
  DirectConv conv =
      forward_conv(call.shape, call.input, call.input_strides, call.weight, call.bias);
  conv.output = call.output;
  conv.output_strides =
      contiguous_strides(conv.out_channels, call.shape.pooled_height(), call.shape.pooled_width());
  conv.offsets = call.offsets;
  return launch_direct_conv(conv, call.device, stream);
}

}  // namespace fastconv::cuda
