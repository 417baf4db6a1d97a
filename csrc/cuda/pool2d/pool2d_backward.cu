// SPDX-License-Identifier: MIT
// Pooling backward without atomics: every input element is written by one thread, once, and adds up
// its windows in the order of their numbers.
//
//   rows:     2x2 windows side by side in contiguous rows: half a vector of gradients -> 16 bytes
//   of
//             two input rows; the last window also clears a row that no window covers
//   windows:  windows apart from each other (channels_last): the owner of a window writes all its
//             inputs, up to where the next window's begin, 16 bytes of channels at a time
//   vectors, elements: a thread per 16 bytes of inputs, or per input, reads the windows over it
#include "cuda/pool2d/pool2d_pass.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = kPoolThreads;
constexpr int kBlocks = 2;  // per multiprocessor at least; without a bound ptxas spills to fit 8

template <int Count, class Divmod, class Pool>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pool2d_backward_kernel(PoolGrid<Divmod> grid, PoolShape<typename Divmod::Index> shape,
                           Pool pool, const typename Pool::T* grad_output,
                           typename Pool::T* grad_input) {
  using Index = typename Divmod::Index;
  using T = typename Pool::T;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < grid.items;
       item += step) {
    const PoolPosition<Index> at = position_of(grid, item);
    const Index channel = at.inner * Count;
    const TapRange<Index> rows = shape.rows.outputs_over(at.row);
    const TapRange<Index> columns = shape.columns.outputs_over(at.column);
    Accumulate<T> sum[Count] = {};
#pragma unroll 1  // one or two windows mostly: unrolled loops cost registers only
    for (Index i = rows.begin; i < rows.end; ++i) {
      const Index r = shape.rows.tap_at(i, at.row);
      if (r < 0) continue;
#pragma unroll 1
      for (Index j = columns.begin; j < columns.end; ++j) {
        const Index q = shape.columns.tap_at(j, at.column);
        if (q < 0) continue;
        const auto window =
            pool.template window<Count>(grad_output, shape.output_at(at.outer, i, j, channel),
                                        shape, shape.rows.origin(i), shape.columns.origin(j));
#pragma unroll
        for (int v = 0; v < Count; ++v) sum[v] += window.share(v, r * shape.columns.kernel + q);
      }
    }
    Vec<T, Count> result;
#pragma unroll
    for (int v = 0; v < Count; ++v) result[v] = from_accumulate<T>(sum[v]);
    store_vector(grad_input + shape.input_at(at.outer, at.row, at.column, channel), result);
  }
}

// The inputs [begin, end) that the owner of window `output` writes along one dimension: they
// begin where its window does, the first one's at 0, and the last one's end with the input.
__device__ inline TapRange<int32_t> owned(const PoolAxis<int32_t>& axis, int32_t output) {
  const int32_t origin = axis.origin(output);
  const int32_t next = origin + axis.stride;
  const int32_t begin = output == 0 ? 0 : origin;
  const bool last = output == axis.out_size - 1 || next > axis.in_size;
  return {begin, last ? axis.in_size : next};
}

template <class Pool>
__global__ void __launch_bounds__(kThreads)
    pool2d_backward_windows_kernel(PoolGrid<FastDivmod> grid, PoolShape<int32_t> shape, Pool pool,
                                   const typename Pool::T* grad_output,
                                   typename Pool::T* grad_input) {
  using T = typename Pool::T;
  constexpr int kVector = kPer128<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < grid.items;
       item += step) {
    const PoolPosition<int32_t> at = position_of(grid, item);
    const int32_t channel = at.inner * kVector;
    const int32_t row = shape.rows.origin(at.row);
    const int32_t column = shape.columns.origin(at.column);
    const auto window = pool.template window<kVector>(
        grad_output, shape.output_at(at.outer, at.row, at.column, channel), shape, row, column);
    const TapRange<int32_t> ys = owned(shape.rows, at.row);
    const TapRange<int32_t> xs = owned(shape.columns, at.column);
#pragma unroll 1
    for (int32_t y = ys.begin; y < ys.end; ++y) {
#pragma unroll 1
      for (int32_t x = xs.begin; x < xs.end; ++x) {
        const int32_t r = y - row, q = x - column;
        const bool covered = r < shape.rows.kernel && q < shape.columns.kernel;
        Vec128<T> result;
#pragma unroll
        for (int v = 0; v < kVector; ++v)
          result[v] = from_accumulate<T>(covered ? window.share(v, r * shape.columns.kernel + q)
                                                 : Accumulate<T>(0));
        store128(grad_input + shape.input_at(at.outer, y, x, channel), result);
      }
    }
  }
}

// The grid numbers vectors of input columns: its width is in_width / kPer128.
template <class Pool>
__global__ void __launch_bounds__(kThreads)
    pool2d_backward_rows_kernel(PoolGrid<FastDivmod> grid, PoolShape<int32_t> shape, Pool pool,
                                const typename Pool::T* grad_output, typename Pool::T* grad_input) {
  using T = typename Pool::T;
  constexpr int kWindows = kPer128<T> / 2;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < grid.items;
       item += step) {
    const PoolPosition<int32_t> at = position_of(grid, item);
    const int32_t column = at.column * kPer128<T>;
    const auto window = pool.template window<kWindows>(
        grad_output, shape.output_at(at.outer, at.row, column / 2, 0), shape, 2 * at.row, column);
    Vec128<T> upper, lower, zeros;
#pragma unroll
    for (int v = 0; v < kWindows; ++v) {
      upper[2 * v] = from_accumulate<T>(window.share(v, 0));
      upper[2 * v + 1] = from_accumulate<T>(window.share(v, 1));
      lower[2 * v] = from_accumulate<T>(window.share(v, 2));
      lower[2 * v + 1] = from_accumulate<T>(window.share(v, 3));
      zeros[2 * v] = zeros[2 * v + 1] = from_accumulate<T>(0);
    }
    T* first = grad_input + shape.input_at(at.outer, 2 * at.row, column, 0);
    store128(first, upper);
    store128(first + shape.columns.in_size, lower);
    const bool last = at.row == shape.rows.out_size - 1;
    if (last && 2 * shape.rows.out_size < shape.rows.in_size)
      store128(first + 2 * shape.columns.in_size, zeros);
  }
}

template <int Count, class Divmod, class Pool>
cudaError_t launch_inputs(const PoolWork<Divmod, Pool>& work, cudaStream_t stream) {
  return FC_LAUNCH((pool2d_backward_kernel<Count, Divmod, Pool>), work.blocks(), kThreads, 0,
                   stream, work.grid, work.shape, work.pool, work.from, work.to);
}

template <class Pool>
cudaError_t launch_backward(const PoolPass<Pool>& pass, cudaStream_t stream) {
  constexpr int kVector = kPer128<typename Pool::T>;
  switch (choose_pool2d_backward(pass.call, pass.aligned)) {
    case Pool2dAlgorithm::kRows: {
      const auto work = pass.on_rows();
      return FC_LAUNCH((pool2d_backward_rows_kernel<Pool>), work.blocks(), kThreads, 0, stream,
                       work.grid, work.shape, work.pool, work.from, work.to);
    }
    case Pool2dAlgorithm::kWindows: {
      const auto work = pass.template on_outputs<FastDivmod>(kVector);
      return FC_LAUNCH((pool2d_backward_windows_kernel<Pool>), work.blocks(), kThreads, 0, stream,
                       work.grid, work.shape, work.pool, work.from, work.to);
    }
    case Pool2dAlgorithm::kVectors:
      return launch_inputs<kVector>(pass.template on_inputs<FastDivmod>(kVector), stream);
    case Pool2dAlgorithm::kElements:
      return launch_inputs<1>(pass.template on_inputs<FastDivmod>(1), stream);
    case Pool2dAlgorithm::kHuge:
      return launch_inputs<1>(pass.template on_inputs<FastDivmod64>(1), stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_max_pool2d_backward(const MaxPool2dBackward& call, cudaStream_t stream) {
  const bool aligned = all_aligned16({call.grad_output, call.offsets, call.grad_input});
  return dispatch_pool2d_element(call.element, [&](auto type) {
    using Pool = MaxShare<decltype(type)>;
    const Pool pool{pool_offsets(call.offsets, call.shape)};
    return launch_backward<Pool>({call, pool, call.grad_output, call.grad_input, aligned}, stream);
  });
}

cudaError_t launch_avg_pool2d_backward(const AvgPool2dBackward& call, cudaStream_t stream) {
  const bool aligned = all_aligned16({call.grad_output, call.grad_input});
  return dispatch_pool2d_element(call.element, [&](auto type) {
    using Pool = AvgShare<decltype(type)>;
    const Pool pool{call.divisor};
    return launch_backward<Pool>({call, pool, call.grad_output, call.grad_input, aligned}, stream);
  });
}

}  // namespace fastconv::cuda
