// SPDX-License-Identifier: MIT
// Weight and bias gradients of a depthwise convolution:
//
//   grad_weight[o, r, q] = sum over n, i, j of grad_output[n, o, i, j] *
//                          input[n, o / multiplier, i * step - pad + r * dilation, j * ... ]
//
// A block owns one output channel (32 where channels are contiguous, one per lane) and one piece of
// the pixels. Its threads take every 256th (8th) pixel, so that none adds up more than kMaxTerms;
// sums of a 3x3, 5x5 or 7x7 kernel stay in registers, others are made one tap at a time. The
// block's sums are added through shuffles and shared memory in a fixed order and go to one row of
// the partials (conv2d_partials.h).
#include <algorithm>

#include "common/checked.h"
#include "common/summation.h"
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/conv2d/conv2d_depthwise.h"
#include "cuda/conv2d/conv2d_elements.cuh"
#include "cuda/conv2d/conv2d_partials.h"

namespace fastconv::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaxSplits = 65535;

struct DepthwiseGradParams {
  const void* grad;
  const void* input;
  Strides4 grad_strides, input_strides;
  int in_height, in_width;
  int kernel_height, kernel_width;
  int step_height, step_width, padding_height, padding_width, dilation_height, dilation_width;
  int out_channels, multiplier;
  int pixels, splits;
  FastDivmod by_out_rows, by_out_columns;
  bool channel_lanes;  // lanes are channels, not pixels
  float* partials;
  int64_t row;        // floats from split to split
  int64_t bias_from;  // where a row's bias begins, or -1
};

// What one thread works on: pixels first, first + step, ... below last of one channel.
struct Share {
  int channel;
  bool exists;
  int first, last, step;
};

__device__ inline Share share_of(const DepthwiseGradParams& p) {
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t pixels = p.pixels;
  const int begin = static_cast<int>(pixels * blockIdx.y / p.splits);
  const int end = static_cast<int>(pixels * (blockIdx.y + 1) / p.splits);
  if (p.channel_lanes) {
    const int channel = blockIdx.x * kWarp + lane;
    return {channel, channel < p.out_channels, begin + warp, end, kWarps};
  }
  return {static_cast<int>(blockIdx.x), true, begin + warp * kWarp + lane, end, kWarp * kWarps};
}

// One pixel of the output: its gradient, and where its kernel begins in the input.
template <typename T>
struct Pixel {
  float grad;
  const T* image;
  int top, left;
};

template <typename T>
__device__ inline Pixel<T> pixel_at(const DepthwiseGradParams& p, int channel, int pixel) {
  int i, j;
  const int image = p.by_out_rows.divmod(p.by_out_columns.divmod(pixel, j), i);
  const T* grad = static_cast<const T*>(p.grad) + image * p.grad_strides.batch +
                  channel * p.grad_strides.channel + i * p.grad_strides.row +
                  j * p.grad_strides.column;
  const T* input = static_cast<const T*>(p.input) + image * p.input_strides.batch +
                   channel / p.multiplier * p.input_strides.channel;
  return {to_float(*grad), input, i * p.step_height - p.padding_height,
          j * p.step_width - p.padding_width};
}

template <typename T>
__device__ inline float input_at(const DepthwiseGradParams& p, const Pixel<T>& pixel, int r,
                                 int q) {
  const int y = pixel.top + r * p.dilation_height, x = pixel.left + q * p.dilation_width;
  const bool inside = y >= 0 && y < p.in_height && x >= 0 && x < p.in_width;
  return inside ? to_float(pixel.image[y * p.input_strides.row + x * p.input_strides.column])
                : 0.0f;
}

// Adds up what the block's threads have, per channel, and writes it to element `at` of each
// channel's part of the row: channel * pitch + at.
__device__ inline void store_sum(const DepthwiseGradParams& p, const Share& share, float sum,
                                 int64_t from, int pitch, float* parts) {
  const int lane = threadIdx.x, warp = threadIdx.y;
  if (!p.channel_lanes) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  }
  parts[warp * kWarp + lane] = sum;
  __syncthreads();
  if (warp == 0 && share.exists && (p.channel_lanes || lane == 0)) {
#pragma unroll
    for (int other = 1; other < kWarps; ++other) sum += parts[other * kWarp + lane];
    p.partials[blockIdx.y * p.row + from + static_cast<int64_t>(share.channel) * pitch] = sum;
  }
  __syncthreads();  // the next sum takes the same memory
}

// Grid: (channels or groups of 32, splits). Block: (32, 8). K: kernel of K x K, or 0 for any.
template <typename T, int K>
__global__ void __launch_bounds__(kWarp* kWarps, K == 7 ? 1 : 2)
    conv2d_depthwise_grad_weight_kernel(const DepthwiseGradParams p) {
  FC_DYNAMIC_SHARED(float, parts);
  const Share share = share_of(p);
  const int taps = p.kernel_height * p.kernel_width;
  const int last = share.exists ? share.last : share.first;
  float bias = 0.0f;
  if constexpr (K > 0) {
    float sums[K][K] = {};
    for (int at = share.first; at < last; at += share.step) {
      const Pixel<T> pixel = pixel_at<T>(p, share.channel, at);
      bias += pixel.grad;
#pragma unroll
      for (int r = 0; r < K; ++r)
#pragma unroll
        for (int q = 0; q < K; ++q)
          sums[r][q] = fmaf(pixel.grad, input_at(p, pixel, r, q), sums[r][q]);
    }
#pragma unroll
    for (int r = 0; r < K; ++r)
#pragma unroll
      for (int q = 0; q < K; ++q) store_sum(p, share, sums[r][q], r * K + q, taps, parts);
  } else {
    for (int tap = 0; tap < taps; ++tap) {
      const int r = tap / p.kernel_width, q = tap - r * p.kernel_width;
      float sum = 0.0f;
      for (int at = share.first; at < last; at += share.step) {
        const Pixel<T> pixel = pixel_at<T>(p, share.channel, at);
        sum = fmaf(pixel.grad, input_at(p, pixel, r, q), sum);
      }
      store_sum(p, share, sum, tap, taps, parts);
    }
    for (int at = share.first; at < last; at += share.step)
      bias += pixel_at<T>(p, share.channel, at).grad;
  }
  if (p.bias_from >= 0) store_sum(p, share, bias, p.bias_from, 1, parts);
}

// --- Choices, on the host ------------------------------------------------------------------------

bool lanes_are_channels(const Conv2dGradWeight& call) {
  return call.grad_output_strides.channel < call.grad_output_strides.column;
}

int64_t channel_blocks(const Conv2dGradWeight& call) {
  return lanes_are_channels(call) ? ceil_div(call.shape.out_channels, int64_t{kWarp})
                                  : call.shape.out_channels;
}

DepthwiseGradParams params_of(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  DepthwiseGradParams p{};
  p.grad = call.grad_output;
  p.input = call.input;
  p.grad_strides = call.grad_output_strides;
  p.input_strides = call.input_strides;
  p.in_height = narrow(s.in_height);
  p.in_width = narrow(s.in_width);
  p.kernel_height = narrow(s.kernel_height);
  p.kernel_width = narrow(s.kernel_width);
  p.step_height = narrow(s.stride_height);
  p.step_width = narrow(s.stride_width);
  p.padding_height = narrow(s.padding_height);
  p.padding_width = narrow(s.padding_width);
  p.dilation_height = narrow(s.dilation_height);
  p.dilation_width = narrow(s.dilation_width);
  p.out_channels = narrow(s.out_channels);
  p.multiplier = narrow(s.group_out_channels());
  p.pixels = narrow(s.batch * s.out_pixels());
  p.splits = narrow(call.plan.splits);
  p.by_out_rows = FastDivmod(s.out_height);
  p.by_out_columns = FastDivmod(s.out_width);
  p.channel_lanes = lanes_are_channels(call);
  p.partials = static_cast<float*>(call.workspace);
  p.row = conv2d_partial_row(call, 1);
  p.bias_from = call.grad_bias != nullptr ? conv2d_partial_weights(s, 1) : -1;
  return p;
}

template <typename T>
cudaError_t launch_kernel(const DepthwiseGradParams& p, dim3 grid, cudaStream_t stream) {
  const dim3 block(kWarp, kWarps);
  constexpr size_t kShared = sizeof(float) * kWarp * kWarps;
  if (p.kernel_height == p.kernel_width) {
    if (p.kernel_height == 3)
      return FC_LAUNCH((conv2d_depthwise_grad_weight_kernel<T, 3>), grid, block, kShared, stream,
                       p);
    if (p.kernel_height == 5)
      return FC_LAUNCH((conv2d_depthwise_grad_weight_kernel<T, 5>), grid, block, kShared, stream,
                       p);
    if (p.kernel_height == 7)
      return FC_LAUNCH((conv2d_depthwise_grad_weight_kernel<T, 7>), grid, block, kShared, stream,
                       p);
  }
  return FC_LAUNCH((conv2d_depthwise_grad_weight_kernel<T, 0>), grid, block, kShared, stream, p);
}

}  // namespace

int64_t conv2d_depthwise_splits(const Conv2dGradWeight& call) {
  constexpr int64_t kBlocksPerMultiprocessor = 4;
  const int64_t pixels = call.shape.batch * call.shape.out_pixels();
  const int64_t threads = lanes_are_channels(call) ? kWarps : kWarp * kWarps;
  // Enough that no thread adds up more than kMaxTerms, enough for all multiprocessors, and none
  // without a pixel for each thread.
  const int64_t short_sums = ceil_div(pixels, threads * kMaxTerms);
  const int64_t busy =
      ceil_div(kBlocksPerMultiprocessor * call.device.multiprocessors, channel_blocks(call));
  const int64_t wanted = std::max(short_sums, std::min(busy, pixels / threads));
  return std::clamp(wanted, int64_t{1}, kMaxSplits);
}

cudaError_t launch_conv2d_grad_weight_depthwise(const Conv2dGradWeight& call, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(channel_blocks(call)),
                  static_cast<unsigned>(call.plan.splits));
  const DepthwiseGradParams p = params_of(call);
  const cudaError_t status = with_conv2d_float(call.element, [&](auto element) {
    return launch_kernel<decltype(element)>(p, grid, stream);
  });
  if (status != cudaSuccess) return status;
  return launch_conv2d_sum_partials(
      call, {call.workspace, call.plan.splits, 1, conv2d_partial_row(call, 1)}, stream);
}

}  // namespace fastconv::cuda
