// SPDX-License-Identifier: MIT
// Depthwise forward and input gradient. Tensors have any strides; neighbouring threads work on
// neighbouring columns, or on neighbouring channels where those are contiguous.
//
// 3x3, 5x5 and 7x7 kernels without dilation and a row step of 1 or 2: a thread computes kRows
// outputs of one column, its weights and sums in registers, so that an input row is read once for
// all outputs above each other - 4.5 loads per output instead of 9 at 3x3. The input gradient at
// step 1 is the same with mirrored weights. All other shapes: one thread per result, plain loops.
#include "common/checked.h"
#include "cuda/common/activation.cuh"
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/conv2d/conv2d_depthwise.h"
#include "cuda/conv2d/conv2d_elements.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;
// Outputs above each other that a thread computes: 49 weights leave few registers.
template <int K>
inline constexpr int kRows = K == 7 ? 2 : 4;

constexpr int64_t kMostElements = int64_t{1} << 30;  // numbered in 32 bits
constexpr int64_t kMostSide = int64_t{1} << 28;  // positions, with all paddings around, likewise

// Numbers of the work of a launch: [images][planes][row blocks][columns], or with planes fastest.
struct Walk {
  FastDivmod by_planes, by_row_blocks, by_columns;
  bool planes_fastest;
};

struct Place {
  int image, plane, row_block, column;
};

__device__ inline Place place_of(const Walk& walk, int index) {
  Place p;
  if (walk.planes_fastest) index = walk.by_planes.divmod(index, p.plane);
  index = walk.by_columns.divmod(index, p.column);
  index = walk.by_row_blocks.divmod(index, p.row_block);
  p.image = walk.planes_fastest ? index : walk.by_planes.divmod(index, p.plane);
  return p;
}

// A convolution of `image` planes into `result` planes, in 32 bits.
struct DepthwiseParams {
  const void* image;
  const void* weight;
  const void* bias;  // of the result's planes, or nullptr
  void* result;
  Strides4 image_strides, weight_strides, result_strides;
  int image_height, image_width, result_height, result_width;
  int kernel_height, kernel_width;
  int step_height, step_width, padding_height, padding_width, dilation_height, dilation_width;
  FastDivmod by_multiplier;  // output channels of one input channel
  FastDivmod by_step_height, by_step_width;
  bool mirrored;
  Activation activation;
  float slope;
  int count;
  Walk walk;
};

template <typename T>
__device__ inline const T* plane_of(const void* data, const Strides4& s, int image, int channel) {
  return static_cast<const T*>(data) + image * s.batch + channel * s.channel;
}

template <typename T, int K>
__device__ inline void load_weights(const DepthwiseParams& p, int plane, float (&w)[K][K]) {
  const T* weight = static_cast<const T*>(p.weight) + plane * p.weight_strides.batch;
#pragma unroll
  for (int r = 0; r < K; ++r)
#pragma unroll
    for (int q = 0; q < K; ++q) {
      const int row = p.mirrored ? K - 1 - r : r, column = p.mirrored ? K - 1 - q : q;
      w[r][q] = to_float(weight[row * p.weight_strides.row + column * p.weight_strides.column]);
    }
}

// The sums of kRows outputs from row `top` of the image on, whose left edge is column `left`.
template <typename T, int K, int Step>
__device__ inline void add_rows(const DepthwiseParams& p, const T* image, int top, int left,
                                const float (&w)[K][K], float (&sums)[kRows<K>]) {
#pragma unroll
  for (int y = 0; y < (kRows<K> - 1) * Step + K; ++y) {
    const bool row_inside = top + y >= 0 && top + y < p.image_height;
    const T* row = image + (top + y) * p.image_strides.row;
#pragma unroll
    for (int q = 0; q < K; ++q) {
      const int x = left + q;
      const bool inside = row_inside && x >= 0 && x < p.image_width;
      const float value = inside ? to_float(row[x * p.image_strides.column]) : 0.0f;
#pragma unroll
      for (int i = 0; i < kRows<K>; ++i) {
        const int r = y - i * Step;
        if (r >= 0 && r < K) sums[i] = fmaf(w[r < 0 || r >= K ? 0 : r][q], value, sums[i]);
      }
    }
  }
}

template <typename T, int K, int Step>
__global__ void __launch_bounds__(kThreads, K == 3 ? 2 : 1)
    conv2d_depthwise_rows_kernel(const DepthwiseParams p) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= p.count) return;
  const Place at = place_of(p.walk, index);
  float w[K][K], sums[kRows<K>] = {};
  load_weights<T, K>(p, at.plane, w);
  const T* image =
      plane_of<T>(p.image, p.image_strides, at.image, p.by_multiplier.divide(at.plane));
  const int first = at.row_block * kRows<K>;
  add_rows<T, K, Step>(p, image, first * Step - p.padding_height,
                       at.column * p.step_width - p.padding_width, w, sums);
  const float bias = p.bias == nullptr ? 0.0f : to_float(static_cast<const T*>(p.bias)[at.plane]);
#pragma unroll
  for (int i = 0; i < kRows<K>; ++i) sums[i] += bias;
  activate(sums, p.activation, p.slope);
  T* result = static_cast<T*>(p.result) + at.image * p.result_strides.batch +
              at.plane * p.result_strides.channel + at.column * p.result_strides.column;
#pragma unroll
  for (int i = 0; i < kRows<K>; ++i)
    if (first + i < p.result_height)
      result[(first + i) * p.result_strides.row] = from_float<T>(sums[i]);
}

// Row sums keep long kernels' sums short, for float32's sake.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    conv2d_depthwise_any_kernel(const DepthwiseParams p) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= p.count) return;
  const Place at = place_of(p.walk, index);
  const T* image =
      plane_of<T>(p.image, p.image_strides, at.image, p.by_multiplier.divide(at.plane));
  const T* weight = static_cast<const T*>(p.weight) + at.plane * p.weight_strides.batch;
  const int top = at.row_block * p.step_height - p.padding_height;
  const int left = at.column * p.step_width - p.padding_width;
  float sum[1] = {0.0f};
  for (int r = 0; r < p.kernel_height; ++r) {
    const int y = top + r * p.dilation_height;
    if (y < 0 || y >= p.image_height) continue;
    float row_sum = 0.0f;
    for (int q = 0; q < p.kernel_width; ++q) {
      const int x = left + q * p.dilation_width;
      if (x < 0 || x >= p.image_width) continue;
      row_sum =
          fmaf(to_float(weight[r * p.weight_strides.row + q * p.weight_strides.column]),
               to_float(image[y * p.image_strides.row + x * p.image_strides.column]), row_sum);
    }
    sum[0] += row_sum;
  }
  if (p.bias != nullptr) sum[0] += to_float(static_cast<const T*>(p.bias)[at.plane]);
  activate(sum, p.activation, p.slope);
  static_cast<T*>(
      p.result)[at.image * p.result_strides.batch + at.plane * p.result_strides.channel +
                at.row_block * p.result_strides.row + at.column * p.result_strides.column] =
      from_float<T>(sum[0]);
}

// The gradient of one input pixel: `image` is the output's gradient, `result` that of the input.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    conv2d_depthwise_grad_input_kernel(const DepthwiseParams p) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= p.count) return;
  const Place at = place_of(p.walk, index);
  const int multiplier = p.by_multiplier.divisor();
  float sum = 0.0f;
  for (int m = 0; m < multiplier; ++m) {
    const int out = at.plane * multiplier + m;
    const T* image = plane_of<T>(p.image, p.image_strides, at.image, out);
    const T* weight = static_cast<const T*>(p.weight) + out * p.weight_strides.batch;
    for (int r = 0; r < p.kernel_height; ++r) {
      const int row = at.row_block + p.padding_height - r * p.dilation_height;
      if (row < 0) break;
      int beside;
      const int i = p.by_step_height.divmod(row, beside);
      if (beside != 0 || i >= p.image_height) continue;
      float row_sum = 0.0f;
      for (int q = 0; q < p.kernel_width; ++q) {
        const int column = at.column + p.padding_width - q * p.dilation_width;
        if (column < 0) break;
        const int j = p.by_step_width.divmod(column, beside);
        if (beside != 0 || j >= p.image_width) continue;
        row_sum =
            fmaf(to_float(weight[r * p.weight_strides.row + q * p.weight_strides.column]),
                 to_float(image[i * p.image_strides.row + j * p.image_strides.column]), row_sum);
      }
      sum += row_sum;
    }
  }
  static_cast<T*>(
      p.result)[at.image * p.result_strides.batch + at.plane * p.result_strides.channel +
                at.row_block * p.result_strides.row + at.column * p.result_strides.column] =
      from_float<T>(sum);
}

// --- Choices, on the host ------------------------------------------------------------------------

DepthwiseParams base_params(const Conv2dShape& s) {
  DepthwiseParams p{};
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  p.kernel_height = narrow(s.kernel_height);
  p.kernel_width = narrow(s.kernel_width);
  p.step_height = narrow(s.stride_height);
  p.step_width = narrow(s.stride_width);
  p.padding_height = narrow(s.padding_height);
  p.padding_width = narrow(s.padding_width);
  p.dilation_height = narrow(s.dilation_height);
  p.dilation_width = narrow(s.dilation_width);
  p.by_multiplier = FastDivmod(s.group_out_channels());
  p.by_step_height = FastDivmod(s.stride_height);
  p.by_step_width = FastDivmod(s.stride_width);
  return p;
}

// Whether the kernels with weights in registers serve a pass with this step of the rows.
bool in_registers(const Conv2dShape& s, int64_t most_step) {
  return s.kernel_height == s.kernel_width &&
         (s.kernel_height == 3 || s.kernel_height == 5 || s.kernel_height == 7) &&
         s.dilation_height == 1 && s.dilation_width == 1 && s.stride_height <= most_step;
}

int rows_of(int kernel) {
  return kernel == 7 ? kRows<7> : kernel == 5 ? kRows<5> : kRows<3>;
}

// Numbers the work of a kernel whose threads compute `rows_each` rows.
void number(DepthwiseParams& p, int64_t images, int64_t planes, int64_t rows_each) {
  const int64_t blocks = ceil_div(p.result_height, rows_each);
  p.walk = {FastDivmod(planes), FastDivmod(blocks), FastDivmod(p.result_width),
            p.result_strides.channel < p.result_strides.column};
  p.count = static_cast<int>(images * planes * blocks * p.result_width);
}

template <typename T, int K>
cudaError_t launch_rows(const DepthwiseParams& p, cudaStream_t stream) {
  const unsigned grid = blocks_for(p.count, kThreads);
  if (p.step_height == 1)
    return FC_LAUNCH((conv2d_depthwise_rows_kernel<T, K, 1>), grid, kThreads, 0, stream, p);
  return FC_LAUNCH((conv2d_depthwise_rows_kernel<T, K, 2>), grid, kThreads, 0, stream, p);
}

template <typename T>
cudaError_t launch_forward(const DepthwiseParams& p, bool registers, cudaStream_t stream) {
  if (!registers)
    return FC_LAUNCH(conv2d_depthwise_any_kernel<T>, blocks_for(p.count, kThreads), kThreads, 0,
                     stream, p);
  switch (p.kernel_height) {
    case 3:
      return launch_rows<T, 3>(p, stream);
    case 5:
      return launch_rows<T, 5>(p, stream);
    default:
      return launch_rows<T, 7>(p, stream);
  }
}

}  // namespace

bool conv2d_depthwise_applies(const Conv2dCall& call) {
  const Conv2dShape& s = call.shape;
  if (call.element == Conv2dElement::kFloat64 || s.groups != s.in_channels || s.in_channels < 1)
    return false;
  int64_t inputs = 0, outputs = 0;
  if (!checked_product({s.batch, s.in_channels, s.in_height, s.in_width}, &inputs) ||
      !checked_product({s.batch, s.out_channels, s.out_height, s.out_width}, &outputs))
    return false;
  if (inputs > kMostElements || outputs > kMostElements) return false;
  for (const int64_t size : {s.in_height, s.in_width, s.out_height, s.out_width, s.stride_height,
                             s.stride_width, s.padding_height, s.padding_width, s.dilation_height,
                             s.dilation_width, s.kernel_height, s.kernel_width})
    if (size > kMostSide) return false;
  // The furthest pixel that a kernel looks for, inside the padding or not.
  return s.dilation_height * s.kernel_height <= kMostSide &&
         s.dilation_width * s.kernel_width <= kMostSide;
}

cudaError_t launch_conv2d_forward_depthwise(const Conv2dForward& call, cudaStream_t stream) {
  const Conv2dShape& s = call.shape;
  DepthwiseParams p = base_params(s);
  if (s.batch * s.out_channels * s.out_pixels() == 0) return cudaSuccess;
  p.image = call.input;
  p.image_strides = call.input_strides;
  p.image_height = static_cast<int>(s.in_height);
  p.image_width = static_cast<int>(s.in_width);
  p.weight = call.weight;
  p.weight_strides = call.weight_strides;
  p.bias = call.bias;
  p.result = call.output;
  p.result_strides = call.output_strides;
  p.result_height = static_cast<int>(s.out_height);
  p.result_width = static_cast<int>(s.out_width);
  p.activation = call.activation;
  p.slope = call.negative_slope;
  const bool registers = in_registers(s, 2);
  number(p, s.batch, s.out_channels, registers ? rows_of(p.kernel_height) : 1);
  return with_conv2d_float(call.element, [&](auto element) {
    return launch_forward<decltype(element)>(p, registers, stream);
  });
}

cudaError_t launch_conv2d_grad_input_depthwise(const Conv2dGradInput& call, cudaStream_t stream) {
  const Conv2dShape& s = call.shape;
  DepthwiseParams p = base_params(s);
  if (s.batch * s.in_channels * s.in_pixels() == 0) return cudaSuccess;
  p.image = call.grad_output;
  p.image_strides = call.grad_output_strides;
  p.image_height = static_cast<int>(s.out_height);
  p.image_width = static_cast<int>(s.out_width);
  p.weight = call.weight;
  p.weight_strides = call.weight_strides;
  p.result = call.grad_input;
  p.result_strides = call.grad_input_strides;
  p.result_height = static_cast<int>(s.in_height);
  p.result_width = static_cast<int>(s.in_width);
  p.activation = Activation::kNone;
  const bool registers = in_registers(s, 1) && s.stride_width == 1 && s.group_out_channels() == 1;
  if (registers) {
    p.mirrored = true;
    p.padding_height = p.kernel_height - 1 - p.padding_height;
    p.padding_width = p.kernel_width - 1 - p.padding_width;
  }
  number(p, s.batch, s.in_channels, registers ? rows_of(p.kernel_height) : 1);
  return with_conv2d_float(call.element, [&](auto element) {
    using T = decltype(element);
    if (registers) return launch_forward<T>(p, true, stream);
    return FC_LAUNCH(conv2d_depthwise_grad_input_kernel<T>, blocks_for(p.count, kThreads), kThreads,
                     0, stream, p);
  });
}

}  // namespace fastconv::cuda
