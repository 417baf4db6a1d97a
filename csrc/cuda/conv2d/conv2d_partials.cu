// SPDX-License-Identifier: MIT
// Sums the partial weight gradients (layout: conv2d_partials.h). A block owns 32 neighbouring
// elements; each of its 8 warps adds every 8th split, and the first one adds up the 8 results, in
// the order of the splits in both cases.
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/conv2d/conv2d_elements.cuh"
#include "cuda/conv2d/conv2d_partials.h"

namespace fastconv::cuda {
namespace {

constexpr int kElements = 32;
constexpr int kSlices = 8;

struct SumArgs {
  const void* partials;
  void* grad_weight;
  void* grad_bias;
  Strides4 w;
  int64_t splits;
  int64_t row_stride;  // from one split to the next
  int64_t row;         // elements of a split
  int64_t weights;     // of them, those before the bias
  int64_t padded_channels;
  int64_t channels;
  int64_t kernel_height;
  int64_t kernel_width;
};

template <typename T>
__device__ void store_gradient(const SumArgs& a, int64_t element, Accumulate<T> sum) {
  if (element >= a.weights) {
    static_cast<T*>(a.grad_bias)[element - a.weights] = from_accumulate<T>(sum);
    return;
  }
  const int64_t c = element % a.padded_channels;
  if (c >= a.channels) return;
  int64_t rest = element / a.padded_channels;
  const int64_t q = rest % a.kernel_width;
  rest /= a.kernel_width;
  const int64_t r = rest % a.kernel_height;
  const int64_t o = rest / a.kernel_height;
  static_cast<T*>(a.grad_weight)[o * a.w.batch + c * a.w.channel + r * a.w.row + q * a.w.column] =
      from_accumulate<T>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kElements* kSlices) conv2d_sum_partials_kernel(SumArgs a) {
  using Sum = Accumulate<T>;
  FC_DYNAMIC_SHARED(Sum, slices);  // [kSlices][kElements]
  const int lane = static_cast<int>(threadIdx.x) % kElements;
  const int slice = static_cast<int>(threadIdx.x) / kElements;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kElements;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kElements; first < a.row; first += step) {
    const int64_t element = first + lane;
    Sum sum = 0;
    if (element < a.row) {
      const Sum* partial = static_cast<const Sum*>(a.partials) + element;
      for (int64_t split = slice; split < a.splits; split += kSlices)
        sum += partial[split * a.row_stride];
    }
    slices[slice * kElements + lane] = sum;
    __syncthreads();
    if (slice == 0 && element < a.row) {
      for (int other = 1; other < kSlices; ++other) sum += slices[other * kElements + lane];
      store_gradient<T>(a, element, sum);
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t launch_conv2d_sum_partials(const Conv2dGradWeight& call, const Conv2dPartials& partials,
                                       cudaStream_t stream) {
  const Conv2dShape& s = call.shape;
  const int64_t row = conv2d_partial_row(call, partials.padded_channels);
  const SumArgs args{partials.partials,
                     call.grad_weight,
                     call.grad_bias,
                     call.grad_weight_strides,
                     partials.splits,
                     partials.row_stride,
                     row,
                     conv2d_partial_weights(s, partials.padded_channels),
                     partials.padded_channels,
                     s.group_in_channels(),
                     s.kernel_height,
                     s.kernel_width};
  const unsigned grid = grid_for(row, kElements);
  constexpr int kBlock = kElements * kSlices;
  return with_conv2d_element(call.element, [&](auto element) {
    using T = decltype(element);
    constexpr size_t kShared = kBlock * sizeof(Accumulate<T>);
    return FC_LAUNCH(conv2d_sum_partials_kernel<T>, grid, kBlock, kShared, stream, args);
  });
}

}  // namespace fastconv::cuda
