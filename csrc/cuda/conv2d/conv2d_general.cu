// SPDX-License-Identifier: MIT
// conv2d for any shape, layout and element type, by its definition: a thread owns one output
// element (forward), one input element (grad input) or one weight over one range of pixels (grad
// weight, followed by conv2d_partials.cu), and adds up what belongs to it. No thread writes what
// another one writes, so nothing depends on the order in which they run. Taps outside of the image
// are skipped, not multiplied by zero: an infinite weight meets only the pixels it covers.
//
// Sums are kept in float32 (float64 for float64) and cut into runs of kMaxTerms products, as on the
// CPU: one unbroken run over a deep layer loses more than the parity rule allows.
#include "common/summation.h"
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/conv2d/conv2d_elements.cuh"
#include "cuda/conv2d/conv2d_general.h"
#include "cuda/conv2d/conv2d_partials.h"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;

// The shape, with the products of its sizes that every thread needs.
struct Sizes : Conv2dShape {
  explicit Sizes(const Conv2dShape& shape)
      : Conv2dShape(shape),
        group_in(shape.group_in_channels()),
        group_out(shape.group_out_channels()),
        kernel_taps(shape.taps()),
        image_outputs(shape.out_pixels()) {}

  int64_t group_in;
  int64_t group_out;
  int64_t kernel_taps;
  int64_t image_outputs;
};

// A sum of products in runs of at most kMaxTerms.
template <typename Sum>
struct BrokenSum {
  Sum total = 0;
  Sum run = 0;
  int terms = 0;

  __device__ void add(Sum a, Sum b) {
    run += a * b;
    if (++terms == kMaxTerms) {
      total += run;
      run = 0;
      terms = 0;
    }
  }
  __device__ Sum value() const { return total + run; }
};

// Position in a 4-D tensor, and its number with the faster of channels and columns innermost.
struct Position {
  int64_t image;
  int64_t channel;
  int64_t row;
  int64_t column;
};

struct Extents {
  int64_t channels;
  int64_t rows;
  int64_t columns;
};

__device__ Position position_of(int64_t index, const Extents& e, bool channels_fastest) {
  Position p;
  if (channels_fastest) {
    p.channel = index % e.channels;
    index /= e.channels;
  }
  p.column = index % e.columns;
  index /= e.columns;
  p.row = index % e.rows;
  index /= e.rows;
  if (channels_fastest) {
    p.image = index;
  } else {
    p.channel = index % e.channels;
    p.image = index / e.channels;
  }
  return p;
}

__device__ int64_t offset_of(const Strides4& s, int64_t image, int64_t channel, int64_t row,
                             int64_t column) {
  return image * s.batch + channel * s.channel + row * s.row + column * s.column;
}

bool channels_fastest(const Strides4& s) {
  return s.channel < s.column;
}

template <typename Sum>
__device__ Sum activate(Sum x, Activation activation, float negative_slope) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < Sum(0) ? Sum(0) : x;
    case Activation::kLeakyRelu:
      return x < Sum(0) ? x * Sum(negative_slope) : x;
    case Activation::kSigmoid:
      return Sum(1) / (Sum(1) + exp(-x));
    case Activation::kTanh:
      return tanh(x);
  }
  return x;
}

struct ForwardArgs {
  Sizes shape;
  const void* input;
  const void* weight;
  const void* bias;
  void* output;
  Strides4 in;
  Strides4 w;
  Strides4 out;
  Activation activation;
  float negative_slope;
  bool channels_fastest;
};

template <typename T>
__device__ Accumulate<T> output_value(const ForwardArgs& a, const Position& p) {
  const Sizes& s = a.shape;
  const int64_t first_channel = p.channel / s.group_out * s.group_in;
  const T* image = static_cast<const T*>(a.input) + offset_of(a.in, p.image, first_channel, 0, 0);
  const T* weight = static_cast<const T*>(a.weight) + p.channel * a.w.batch;
  const int64_t first_row = p.row * s.stride_height - s.padding_height;
  const int64_t first_column = p.column * s.stride_width - s.padding_width;
  BrokenSum<Accumulate<T>> sum;
  for (int64_t r = 0; r < s.kernel_height; ++r) {
    const int64_t row = first_row + r * s.dilation_height;
    if (row < 0 || row >= s.in_height) continue;
    for (int64_t q = 0; q < s.kernel_width; ++q) {
      const int64_t column = first_column + q * s.dilation_width;
      if (column < 0 || column >= s.in_width) continue;
      const T* pixel = image + row * a.in.row + column * a.in.column;
      const T* tap = weight + r * a.w.row + q * a.w.column;
      for (int64_t c = 0; c < s.group_in; ++c)
        sum.add(to_accumulate(tap[c * a.w.channel]), to_accumulate(pixel[c * a.in.channel]));
    }
  }
  return sum.value();
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv2d_forward_general_kernel(ForwardArgs a, int64_t outputs) {
  const Sizes& s = a.shape;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < outputs;
       index += step) {
    const Position p =
        position_of(index, {s.out_channels, s.out_height, s.out_width}, a.channels_fastest);
    Accumulate<T> value = output_value<T>(a, p);
    if (a.bias != nullptr) value += to_accumulate(static_cast<const T*>(a.bias)[p.channel]);
    static_cast<T*>(a.output)[offset_of(a.out, p.image, p.channel, p.row, p.column)] =
        from_accumulate<T>(activate(value, a.activation, a.negative_slope));
  }
}

struct GradInputArgs {
  Sizes shape;
  const void* grad_output;
  const void* weight;
  void* grad_input;
  Strides4 go;
  Strides4 w;
  Strides4 gi;
  bool channels_fastest;
};

// The output row or column whose tap reads position `at` of the padded image, or -1.
__device__ int64_t output_reading(int64_t at, int64_t stride, int64_t outputs) {
  if (at < 0 || at % stride != 0) return -1;
  const int64_t output = at / stride;
  return output < outputs ? output : -1;
}

template <typename T>
__device__ Accumulate<T> grad_input_value(const GradInputArgs& a, const Position& p) {
  const Sizes& s = a.shape;
  const int64_t first_output = p.channel / s.group_in * s.group_out;
  const T* grads =
      static_cast<const T*>(a.grad_output) + offset_of(a.go, p.image, first_output, 0, 0);
  const T* weight = static_cast<const T*>(a.weight) + first_output * a.w.batch +
                    p.channel % s.group_in * a.w.channel;
  BrokenSum<Accumulate<T>> sum;
  for (int64_t r = 0; r < s.kernel_height; ++r) {
    const int64_t i = output_reading(p.row + s.padding_height - r * s.dilation_height,
                                     s.stride_height, s.out_height);
    if (i < 0) continue;
    for (int64_t q = 0; q < s.kernel_width; ++q) {
      const int64_t j = output_reading(p.column + s.padding_width - q * s.dilation_width,
                                       s.stride_width, s.out_width);
      if (j < 0) continue;
      const T* grad = grads + i * a.go.row + j * a.go.column;
      const T* tap = weight + r * a.w.row + q * a.w.column;
      for (int64_t o = 0; o < s.group_out; ++o)
        sum.add(to_accumulate(tap[o * a.w.batch]), to_accumulate(grad[o * a.go.channel]));
    }
  }
  return sum.value();
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv2d_grad_input_general_kernel(GradInputArgs a, int64_t inputs) {
  const Sizes& s = a.shape;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < inputs;
       index += step) {
    const Position p =
        position_of(index, {s.in_channels, s.in_height, s.in_width}, a.channels_fastest);
    static_cast<T*>(a.grad_input)[offset_of(a.gi, p.image, p.channel, p.row, p.column)] =
        from_accumulate<T>(grad_input_value<T>(a, p));
  }
}

struct GradWeightArgs {
  Sizes shape;
  const void* grad_output;
  const void* input;
  void* partials;
  Strides4 go;
  Strides4 in;
  int64_t weights;  // elements of a row of the partials before the bias
  int64_t row;      // elements of a row of the partials
  int64_t pixels_per_split;
};

// Walks the pixels [first, last) of grad_output, all images in turn.
struct PixelWalk {
  int64_t image;
  int64_t row;
  int64_t column;

  __device__ PixelWalk(int64_t first, const Sizes& s)
      : image(first / s.image_outputs),
        row(first % s.image_outputs / s.out_width),
        column(first % s.out_width) {}
  __device__ void advance(const Sizes& s) {
    if (++column < s.out_width) return;
    column = 0;
    if (++row < s.out_height) return;
    row = 0;
    ++image;
  }
};

// Sum over pixels of grad_output[o] times the input under one tap; `element` numbers the weights as
// [out_channels, taps, group_in_channels].
template <typename T>
__device__ Accumulate<T> weight_sum(const GradWeightArgs& a, int64_t element, int64_t first,
                                    int64_t last) {
  const Sizes& s = a.shape;
  const int64_t c = element % s.group_in;
  const int64_t tap = element / s.group_in % s.kernel_taps;
  const int64_t o = element / s.group_in / s.kernel_taps;
  const int64_t row_shift = tap / s.kernel_width * s.dilation_height - s.padding_height;
  const int64_t column_shift = tap % s.kernel_width * s.dilation_width - s.padding_width;
  const T* grads = static_cast<const T*>(a.grad_output) + o * a.go.channel;
  const T* pixels =
      static_cast<const T*>(a.input) + (o / s.group_out * s.group_in + c) * a.in.channel;
  BrokenSum<Accumulate<T>> sum;
  PixelWalk at(first, s);
  for (int64_t m = first; m < last; ++m, at.advance(s)) {
    const int64_t row = at.row * s.stride_height + row_shift;
    const int64_t column = at.column * s.stride_width + column_shift;
    if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) continue;
    sum.add(to_accumulate(grads[offset_of(a.go, at.image, 0, at.row, at.column)]),
            to_accumulate(pixels[offset_of(a.in, at.image, 0, row, column)]));
  }
  return sum.value();
}

template <typename T>
__device__ Accumulate<T> bias_sum(const GradWeightArgs& a, int64_t o, int64_t first, int64_t last) {
  const T* grads = static_cast<const T*>(a.grad_output) + o * a.go.channel;
  BrokenSum<Accumulate<T>> sum;
  PixelWalk at(first, a.shape);
  for (int64_t m = first; m < last; ++m, at.advance(a.shape))
    sum.add(to_accumulate(grads[offset_of(a.go, at.image, 0, at.row, at.column)]), 1);
  return sum.value();
}

// `sums`: elements of all rows of the partials.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv2d_grad_weight_general_kernel(GradWeightArgs a, int64_t sums) {
  const int64_t pixels = a.shape.batch * a.shape.image_outputs;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < sums;
       index += step) {
    const int64_t element = index % a.row;
    const int64_t first = index / a.row * a.pixels_per_split;
    const int64_t last = first + a.pixels_per_split < pixels ? first + a.pixels_per_split : pixels;
    static_cast<Accumulate<T>*>(a.partials)[index] =
        element < a.weights ? weight_sum<T>(a, element, first, last)
                            : bias_sum<T>(a, element - a.weights, first, last);
  }
}

}  // namespace

int64_t conv2d_general_splits(const Conv2dGradWeight& call) {
  constexpr int64_t kThreadsPerMultiprocessor = 1024;
  constexpr int64_t kMostSplits = 1024;
  const int64_t row = conv2d_partial_row(call, call.shape.group_in_channels());
  if (row == 0) return 1;
  const int64_t wanted = ceil_div(call.device.multiprocessors * kThreadsPerMultiprocessor, row);
  const int64_t most = ceil_div(call.shape.batch * call.shape.out_pixels(), kMaxTerms);
  const int64_t splits = wanted < most ? wanted : most;
  if (splits > kMostSplits) return kMostSplits;
  return splits > 1 ? splits : 1;
}

cudaError_t launch_conv2d_forward_general(const Conv2dForward& call, cudaStream_t stream) {
  const Conv2dShape& s = call.shape;
  const int64_t outputs = s.batch * s.out_channels * s.out_pixels();
  const ForwardArgs args{Sizes(s),
                         call.input,
                         call.weight,
                         call.bias,
                         call.output,
                         call.input_strides,
                         call.weight_strides,
                         call.output_strides,
                         call.activation,
                         call.negative_slope,
                         channels_fastest(call.output_strides)};
  const unsigned grid = grid_for(outputs, kThreads);
  return with_conv2d_element(call.element, [&](auto element) {
    return FC_LAUNCH(conv2d_forward_general_kernel<decltype(element)>, grid, kThreads, 0, stream,
                     args, outputs);
  });
}

cudaError_t launch_conv2d_grad_input_general(const Conv2dGradInput& call, cudaStream_t stream) {
  const Conv2dShape& s = call.shape;
  const int64_t inputs = s.batch * s.in_channels * s.in_pixels();
  const GradInputArgs args{Sizes(s),
                           call.grad_output,
                           call.weight,
                           call.grad_input,
                           call.grad_output_strides,
                           call.weight_strides,
                           call.grad_input_strides,
                           channels_fastest(call.grad_input_strides)};
  const unsigned grid = grid_for(inputs, kThreads);
  return with_conv2d_element(call.element, [&](auto element) {
    return FC_LAUNCH(conv2d_grad_input_general_kernel<decltype(element)>, grid, kThreads, 0, stream,
                     args, inputs);
  });
}

cudaError_t launch_conv2d_grad_weight_general(const Conv2dGradWeight& call, cudaStream_t stream) {
  const Conv2dShape& s = call.shape;
  const int64_t group_in = s.group_in_channels();
  const int64_t row = conv2d_partial_row(call, group_in);
  const int64_t sums = call.plan.splits * row;
  const GradWeightArgs args{Sizes(s),
                            call.grad_output,
                            call.input,
                            call.workspace,
                            call.grad_output_strides,
                            call.input_strides,
                            conv2d_partial_weights(s, group_in),
                            row,
                            ceil_div(s.batch * s.out_pixels(), call.plan.splits)};
  const unsigned grid = grid_for(sums, kThreads);
  const cudaError_t error = with_conv2d_element(call.element, [&](auto element) {
    return FC_LAUNCH(conv2d_grad_weight_general_kernel<decltype(element)>, grid, kThreads, 0,
                     stream, args, sums);
  });
  if (error != cudaSuccess) return error;
  return launch_conv2d_sum_partials(call, {call.workspace, call.plan.splits, group_in, row},
                                    stream);
}

}  // namespace fastconv::cuda
