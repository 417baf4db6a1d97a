// SPDX-License-Identifier: MIT
// What offsets are turned into: torch's int64 indices, and the values at the winning taps (the
// second derivative). One output per thread.
#include "cuda/common/launch.h"
#include "cuda/pool2d/pool2d_choice.h"
#include "cuda/pool2d/pool2d_policies.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;

// Where the recorded tap of an output lies; the offset is element `at`.
template <typename Index>
struct Winner {
  Index row;
  Index column;
};

template <typename Index>
__device__ inline Winner<Index> winner_of(const PoolShape<Index>& shape, const PoolOffsets& offsets,
                                          const PoolPosition<Index>& output, Index at) {
  int32_t tap[1];
  load_offsets(offsets, at, tap);
  const Index r = tap[0] / shape.columns.kernel;
  const Index q = tap[0] - r * shape.columns.kernel;
  return {shape.rows.origin(output.row) + r * shape.rows.dilation,
          shape.columns.origin(output.column) + q * shape.columns.dilation};
}

template <class Divmod>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_indices_kernel(PoolGrid<Divmod> grid, PoolShape<typename Divmod::Index> shape,
                              PoolOffsets offsets, int64_t* indices) {
  using Index = typename Divmod::Index;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < grid.items;
       item += step) {
    const PoolPosition<Index> at = position_of(grid, item);
    const auto place = winner_of(shape, offsets, at, static_cast<Index>(item));
    indices[item] = static_cast<int64_t>(place.row) * shape.columns.in_size + place.column;
  }
}

template <class Divmod, typename T>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_gather_kernel(PoolGrid<Divmod> grid, PoolShape<typename Divmod::Index> shape,
                             PoolOffsets offsets, const T* source, T* output) {
  using Index = typename Divmod::Index;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < grid.items;
       item += step) {
    const PoolPosition<Index> at = position_of(grid, item);
    const auto place = winner_of(shape, offsets, at, static_cast<Index>(item));
    const bool inside = place.row >= 0 && place.row < shape.rows.in_size && place.column >= 0 &&
                        place.column < shape.columns.in_size;
    output[item] = inside ? source[shape.input_at(at.outer, place.row, place.column, at.inner)]
                          : from_accumulate<T>(0);
  }
}

template <class Divmod>
cudaError_t launch_indices(const MaxPool2dIndices& call, cudaStream_t stream) {
  const PoolShape<typename Divmod::Index> shape(call.shape, call.channels_last);
  const auto grid = output_grid<Divmod>(call.shape, call.channels_last, 1);
  return FC_LAUNCH(max_pool2d_indices_kernel<Divmod>, grid_for(grid.items, kThreads), kThreads, 0,
                   stream, grid, shape, pool_offsets(call.offsets, call.shape), call.indices);
}

template <class Divmod, typename T>
cudaError_t launch_gather(const MaxPool2dGather& call, cudaStream_t stream) {
  const PoolShape<typename Divmod::Index> shape(call);
  const auto grid = output_grid<Divmod>(call.shape, call.channels_last, 1);
  return FC_LAUNCH((max_pool2d_gather_kernel<Divmod, T>), grid_for(grid.items, kThreads), kThreads,
                   0, stream, grid, shape, pool_offsets(call.offsets, call.shape),
                   static_cast<const T*>(call.source), static_cast<T*>(call.output));
}

}  // namespace

cudaError_t launch_max_pool2d_indices(const MaxPool2dIndices& call, cudaStream_t stream) {
  const Pool2dCall any{call.shape, call.channels_last, Pool2dElement::kFloat32};
  if (choose_pool2d_forward(any, false) == Pool2dAlgorithm::kHuge)
    return launch_indices<FastDivmod64>(call, stream);
  return launch_indices<FastDivmod>(call, stream);
}

cudaError_t launch_max_pool2d_gather(const MaxPool2dGather& call, cudaStream_t stream) {
  return dispatch_pool2d_element(call.element, [&](auto type) {
    using T = decltype(type);
    if (choose_pool2d_forward(call, false) == Pool2dAlgorithm::kHuge)
      return launch_gather<FastDivmod64, T>(call, stream);
    return launch_gather<FastDivmod, T>(call, stream);
  });
}

}  // namespace fastconv::cuda
