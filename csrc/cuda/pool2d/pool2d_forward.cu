// SPDX-License-Identifier: MIT
// Pooling forward: a thread computes 16 bytes of outputs, or one, and reads each tap once.
//
//   rows:    input rows 2 i and 2 i + 1, 16 bytes of each -> half as many outputs of row i; for 2x2
//            windows side by side in contiguous rows, where a warp then reads 512 bytes of a row
//   vectors: 16 bytes of channels (channels_last) of one output, all taps in order
//   elements: the same with one value; neighbouring threads have neighbouring columns
//
// Bound by memory: 2x2 windows of float32 read 16 bytes and write 4, plus 1 of offsets.
#include "cuda/pool2d/pool2d_pass.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = kPoolThreads;

// For sm_100 and newer ptxas spills a few registers unless it is told how many it may use.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FC_FORWARD_BOUNDS __launch_bounds__(kThreads, 2)
#else
#define FC_FORWARD_BOUNDS __launch_bounds__(kThreads)
#endif

template <int Count, class Divmod, class Pool>
__global__ void FC_FORWARD_BOUNDS pool2d_forward_kernel(PoolGrid<Divmod> grid,
                                                        PoolShape<typename Divmod::Index> shape,
                                                        Pool pool, const typename Pool::T* input,
                                                        typename Pool::T* output) {
  using Index = typename Divmod::Index;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < grid.items;
       item += step) {
    const PoolPosition<Index> at = position_of(grid, item);
    const Index channel = at.inner * Count;
    const Index row = shape.rows.origin(at.row);
    const Index column = shape.columns.origin(at.column);
    const TapRange<Index> rows = shape.rows.taps(row);
    const TapRange<Index> columns = shape.columns.taps(column);
    typename Pool::template State<Count> state;
    pool.start(state, static_cast<int64_t>(rows.begin) * shape.columns.kernel + columns.begin);
    for (Index r = rows.begin; r < rows.end; ++r) {
      for (Index q = columns.begin; q < columns.end; ++q) {
        const auto x = load_vector_streaming<Count>(
            input + shape.input_at(at.outer, row + r * shape.rows.dilation,
                                   column + q * shape.columns.dilation, channel));
#pragma unroll
        for (int v = 0; v < Count; ++v) pool.add(state, v, x[v], r * shape.columns.kernel + q);
      }
    }
    pool.finish(state, output, shape.output_at(at.outer, at.row, at.column, channel), shape, row,
                column);
  }
}

// The grid numbers vectors of input columns: its width is in_width / kPer128.
template <class Pool>
__global__ void __launch_bounds__(kThreads)
    pool2d_forward_rows_kernel(PoolGrid<FastDivmod> grid, PoolShape<int32_t> shape, Pool pool,
                               const typename Pool::T* input, typename Pool::T* output) {
  using T = typename Pool::T;
  constexpr int kOutputs = kPer128<T> / 2;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < grid.items;
       item += step) {
    const PoolPosition<int32_t> at = position_of(grid, item);
    const int32_t column = at.column * kPer128<T>;
    const T* first = input + shape.input_at(at.outer, 2 * at.row, column, 0);
    const Vec128<T> upper = load_streaming(first);
    const Vec128<T> lower = load_streaming(first + shape.columns.in_size);
    typename Pool::template State<kOutputs> state;
    pool.start(state, 0);
#pragma unroll
    for (int v = 0; v < kOutputs; ++v) {
      pool.add(state, v, upper[2 * v], 0);
      pool.add(state, v, upper[2 * v + 1], 1);
      pool.add(state, v, lower[2 * v], 2);
      pool.add(state, v, lower[2 * v + 1], 3);
    }
    pool.finish(state, output, shape.output_at(at.outer, at.row, column / 2, 0), shape, 2 * at.row,
                column);
  }
}

template <int Count, class Divmod, class Pool>
cudaError_t launch_windows(const PoolWork<Divmod, Pool>& work, cudaStream_t stream) {
  return FC_LAUNCH((pool2d_forward_kernel<Count, Divmod, Pool>), work.blocks(), kThreads, 0, stream,
                   work.grid, work.shape, work.pool, work.from, work.to);
}

template <class Pool>
cudaError_t launch_forward(const PoolPass<Pool>& pass, cudaStream_t stream) {
  constexpr int kVector = kPer128<typename Pool::T>;
  switch (choose_pool2d_forward(pass.call, pass.aligned)) {
    case Pool2dAlgorithm::kRows: {
      const auto work = pass.on_rows();
      return FC_LAUNCH((pool2d_forward_rows_kernel<Pool>), work.blocks(), kThreads, 0, stream,
                       work.grid, work.shape, work.pool, work.from, work.to);
    }
    case Pool2dAlgorithm::kVectors:
    case Pool2dAlgorithm::kWindows:
      return launch_windows<kVector>(pass.template on_outputs<FastDivmod>(kVector), stream);
    case Pool2dAlgorithm::kElements:
      return launch_windows<1>(pass.template on_outputs<FastDivmod>(1), stream);
    case Pool2dAlgorithm::kHuge:
      return launch_windows<1>(pass.template on_outputs<FastDivmod64>(1), stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_max_pool2d_forward(const MaxPool2dForward& call, cudaStream_t stream) {
  const bool aligned = all_aligned16({call.input, call.output, call.offsets});
  return dispatch_pool2d_element(call.element, [&](auto type) {
    using Pool = MaxWindow<decltype(type)>;
    const Pool pool{pool_offsets(call.offsets, call.shape)};
    return launch_forward<Pool>({call, pool, call.input, call.output, aligned}, stream);
  });
}

cudaError_t launch_avg_pool2d_forward(const AvgPool2dForward& call, cudaStream_t stream) {
  const bool aligned = all_aligned16({call.input, call.output});
  return dispatch_pool2d_element(call.element, [&](auto type) {
    using Pool = AvgWindow<decltype(type)>;
    const Pool pool{call.divisor};
    return launch_forward<Pool>({call, pool, call.input, call.output, aligned}, stream);
  });
}

}  // namespace fastconv::cuda
