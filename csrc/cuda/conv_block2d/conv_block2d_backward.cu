// SPDX-License-Identifier: MIT
// The backward pass. Behind max pooling the weight gradient and the input gradient read the pooled
// gradient and the winning taps: the gradient of the convolution's full-size output never exists.
// Behind an average, or without pooling, every pixel has a gradient, which is written to the
// workspace first: behind an activation the direct kernel computes z again for it.
#include <algorithm>

#include "common/checked.h"
#include "cuda/common/activation.cuh"
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/conv_block2d/conv_block2d.h"
#include "cuda/conv_block2d/conv_block2d_direct.h"
#include "cuda/conv_block2d/conv_block2d_grad_weight.h"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kAlignment = 256;

// The gradient of every pixel of the convolution's output, where it has one.
enum class PixelGrad {
  kNone,      // max pooling: windows instead
  kGiven,     // grad_output itself
  kOfOutput,  // grad_output behind the activation
  kSpread,    // a quarter of the average's
  kOfMean,    // a quarter of the average's, behind the activation
};

PixelGrad pixel_grad(const ConvBlock2dShape& shape) {
  const bool plain = shape.activation == Activation::kNone;
  switch (shape.pool) {
    case BlockPool::kMax:
      return PixelGrad::kNone;
    case BlockPool::kAvg:
      return plain ? PixelGrad::kSpread : PixelGrad::kOfMean;
    case BlockPool::kNone:
      break;
  }
  return plain ? PixelGrad::kGiven : PixelGrad::kOfOutput;
}

// Pixels of one plane that can have a gradient: a last row or column that no window holds has none.
int64_t grad_height(const ConvBlock2dShape& shape) {
  return shape.pool == BlockPool::kNone ? shape.conv.out_height : 2 * shape.pooled_height();
}
int64_t grad_width(const ConvBlock2dShape& shape) {
  return shape.pool == BlockPool::kNone ? shape.conv.out_width : 2 * shape.pooled_width();
}

__global__ void __launch_bounds__(kThreads)
    conv_block2d_output_grad_kernel(const float* grad_output, const float* output, int64_t count,
                                    Activation activation, float slope, float* grad) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    grad[i] = activation_grad(__ldg(grad_output + i), __ldg(output + i), activation, slope);
}

// Writes the rows of 2 * cell_columns pixels, of which every two get one row of averages.
__global__ void __launch_bounds__(kThreads)
    conv_block2d_spread_grad_kernel(const float* grad_output, int64_t count, int cell_columns,
                                    float* grad) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = i / (2 * cell_columns);  // pairs of rows stay together: the height is even
    const int column = static_cast<int>(i - row * (2 * cell_columns));
    grad[i] = 0.25f * __ldg(grad_output + row / 2 * cell_columns + column / 2);
  }
}

struct Layout {
  int64_t pixel_grad_bytes;
  int64_t partial_bytes;
};

BlockGradWeight weight_call(const ConvBlock2dBackward& call, const float* pixels, float* partials) {
  BlockGradWeight w{};
  w.conv = call.shape.conv;
  w.input = call.input;
  w.input_strides = call.input_strides;
  w.activation = call.shape.activation;
  w.slope = call.shape.negative_slope;
  w.multiplies_zeros = pixel_grad(call.shape) == PixelGrad::kGiven;
  w.grad_height = grad_height(call.shape);
  w.grad_width = grad_width(call.shape);
  w.grad = pixels;
  if (call.shape.pool == BlockPool::kMax) {
    w.grad = call.grad_output;
    w.pooled = call.output;
    w.taps = call.offsets;
  }
  w.grad_weight = call.grad_weight;
  w.grad_bias = call.grad_bias;
  w.partials = partials;
  return w;
}

Layout layout_of(const ConvBlock2dBackward& call) {
  const Conv2dShape& s = call.shape.conv;
  const PixelGrad kind = pixel_grad(call.shape);
  Layout layout{};
  if (kind != PixelGrad::kNone && kind != PixelGrad::kGiven)
    layout.pixel_grad_bytes =
        round_up(static_cast<int64_t>(sizeof(float)) * s.batch * s.out_channels *
                     grad_height(call.shape) * grad_width(call.shape),
                 kAlignment);
  if (call.grad_weight != nullptr || call.grad_bias != nullptr)
    layout.partial_bytes =
        static_cast<int64_t>(sizeof(float)) *
        block_grad_weight_partials(weight_call(call, nullptr, nullptr), call.device);
  return layout;
}

// The convolution whose forward pass `call` was, for its gradient to be computed.
DirectConv mean_grad_conv(const ConvBlock2dBackward& call, float* pixels) {
  DirectConv conv =
      forward_conv(call.shape, call.input, call.input_strides, call.weight, call.bias);
  conv.output = pixels;
  conv.output_strides =
      contiguous_strides(conv.out_channels, grad_height(call.shape), grad_width(call.shape));
  conv.mean_grad = call.grad_output;
  return conv;
}

// grad_input as a convolution of the output's gradient with the mirrored weights.
DirectConv input_grad_conv(const ConvBlock2dBackward& call, const float* pixels) {
  const Conv2dShape& s = call.shape.conv;
  DirectConv conv{};
  conv.batch = s.batch;
  conv.in_channels = s.out_channels;
  conv.in_height = grad_height(call.shape);
  conv.in_width = grad_width(call.shape);
  conv.out_channels = s.in_channels;
  conv.out_height = s.in_height;
  conv.out_width = s.in_width;
  conv.kernel_height = s.kernel_height;
  conv.kernel_width = s.kernel_width;
  conv.padding_height = s.kernel_height - 1 - s.padding_height;
  conv.padding_width = s.kernel_width - 1 - s.padding_width;
  conv.stride_height = conv.stride_width = 1;
  if (call.shape.pool == BlockPool::kMax) {
    conv.grad = call.grad_output;
    conv.pooled = call.output;
    conv.taps = call.offsets;
    conv.grad_activation = call.shape.activation;
    conv.slope = call.shape.negative_slope;
  } else {
    conv.input = pixels;
    conv.input_strides = contiguous_strides(conv.in_channels, conv.in_height, conv.in_width);
  }
  conv.weight = call.weight;
  conv.weight_out_stride = s.taps();
  conv.weight_in_stride = s.in_channels * s.taps();
  conv.weight_tap_stride = 1;
  conv.mirrored = true;
  conv.activation = Activation::kNone;
  conv.pool = BlockPool::kNone;
  conv.output = call.grad_input;
  conv.output_strides = contiguous_strides(s.in_channels, s.in_height, s.in_width);
  return conv;
}

cudaError_t launch_pixel_grad(const ConvBlock2dBackward& call, float* pixels, cudaStream_t stream) {
  const ConvBlock2dShape& shape = call.shape;
  const int64_t count =
      shape.conv.batch * shape.conv.out_channels * grad_height(shape) * grad_width(shape);
  switch (pixel_grad(shape)) {
    case PixelGrad::kOfOutput:
      return FC_LAUNCH(conv_block2d_output_grad_kernel, dim3(grid_for(count, kThreads)),
                       dim3(kThreads), 0, stream, call.grad_output, call.output, count,
                       shape.activation, shape.negative_slope, pixels);
    case PixelGrad::kSpread:
      return FC_LAUNCH(conv_block2d_spread_grad_kernel, dim3(grid_for(count, kThreads)),
                       dim3(kThreads), 0, stream, call.grad_output, count,
                       static_cast<int>(shape.pooled_width()), pixels);
    case PixelGrad::kOfMean:
      return launch_direct_conv(mean_grad_conv(call, pixels), call.device, stream);
    default:
      return cudaSuccess;
  }
}

}  // namespace

int64_t conv_block2d_backward_workspace_bytes(const ConvBlock2dBackward& call) {
  const Layout layout = layout_of(call);
  return layout.pixel_grad_bytes + layout.partial_bytes;
}

cudaError_t launch_conv_block2d_backward(const ConvBlock2dBackward& call, cudaStream_t stream) {
  const Layout layout = layout_of(call);
  char* const workspace = static_cast<char*>(call.workspace);
  float* const written = reinterpret_cast<float*>(workspace);
  const float* const pixels = layout.pixel_grad_bytes > 0 ? written : call.grad_output;
  float* const partials = reinterpret_cast<float*>(workspace + layout.pixel_grad_bytes);
  cudaError_t status = launch_pixel_grad(call, written, stream);
  if (status == cudaSuccess && (call.grad_weight != nullptr || call.grad_bias != nullptr))
    status = launch_block_grad_weight(weight_call(call, pixels, partials), call.device, stream);
  if (status == cudaSuccess && call.grad_input != nullptr)
    status = launch_direct_conv(input_grad_conv(call, pixels), call.device, stream);
  return status;
}

}  // namespace fastconv::cuda
