// SPDX-License-Identifier: MIT
#include "cuda/gemm/gemm.cuh"

#include "cuda/gemm/product.cuh"

namespace fastconv::cuda {
namespace {

template <class T, class Out>
struct GemmCall {
  Product<T> product;
  const T* bias;
  const T* bias2;
  GemmResult<Out> c;
};

template <class Out, class Sum>
__device__ Out from_sum(Sum sum) {
  if constexpr (sizeof(Out) == 2)
    return from_float<Out>(sum);
  else
    return static_cast<Out>(sum);
}

template <class TileType, class T, class Out>
__global__ void __launch_bounds__(TileType::kThreads, TileType::kBlocks)
    gemm_kernel(GemmCall<T, Out> call) {
  run_product<TileType>(
      call.product, [&](int64_t row, int64_t column, const Accumulate<T>(&sums)[4]) {
        const int64_t columns = call.product.columns;
        Out* to = call.c.data + gate_row(row, call.c.hidden) * call.c.pitch + column;
        Out* tail = nullptr;
        if (call.c.tail != nullptr && row >= call.c.tail_begin)
          tail = call.c.tail + row * columns + column;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (column + j >= columns) continue;
          const int64_t at = gate_row(column + j, call.product.b.hidden);
          Accumulate<T> sum = sums[j];
          if (call.bias != nullptr) sum += to_accumulate(call.bias[at]);
          if (call.bias2 != nullptr) sum += to_accumulate(call.bias2[at]);
          to[j] = from_sum<Out>(sum);
          if (tail != nullptr) tail[j] = from_sum<Out>(sum);
        }
      });
}

// Sums of one run of k: [blockIdx.y][rows][columns].
template <class TileType, class T>
__global__ void __launch_bounds__(TileType::kThreads, TileType::kBlocks)
    gemm_partial_kernel(Product<T> product, Accumulate<T>* partial) {
  Accumulate<T>* run = partial + blockIdx.y * product.rows * product.columns;
  run_product<TileType>(product, [&](int64_t row, int64_t column, const Accumulate<T>(&sums)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (column + j < product.columns) run[row * product.columns + column + j] = sums[j];
  });
}

constexpr int kReduceThreads = 256;

template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    gemm_reduce_kernel(const Accumulate<T>* partial, int64_t splits, int64_t rows, int64_t columns,
                       GemmResult<T> c) {
  const int64_t size = rows * columns;
  const int64_t at = blockIdx.x * int64_t{kReduceThreads} + threadIdx.x;
  if (at >= size) return;
  Accumulate<T> sum = partial[at];
  for (int64_t s = 1; s < splits; ++s) sum += partial[s * size + at];
  const int64_t row = at / columns;
  c.data[gate_row(row, c.hidden) * c.pitch + (at - row * columns)] = from_accumulate<T>(sum);
}

// Sums of 64 columns over a run of rows: a thread adds every fourth row, the block adds the four.
constexpr int64_t kSumRows = 256;

template <class T>
__global__ void __launch_bounds__(256) column_sums_kernel(Matrix<T> a, Accumulate<T>* partial) {
  FC_DYNAMIC_SHARED(Accumulate<T>, shared);
  const int64_t across = ceil_div(a.columns, 64);
  const int64_t run = blockIdx.x / across;
  const int64_t column = blockIdx.x % across * 64 + threadIdx.x % 64;
  const int64_t end = (run + 1) * kSumRows < a.rows ? (run + 1) * kSumRows : a.rows;
  Accumulate<T> sum = 0;
  if (column < a.columns)
    for (int64_t row = run * kSumRows + threadIdx.x / 64; row < end; row += 4)
      sum += to_accumulate(a.data[row * a.pitch + column]);
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= 64 || column >= a.columns) return;
  for (int i = 1; i < 4; ++i) sum += shared[i * 64 + threadIdx.x];
  partial[run * a.columns + column] = sum;
}

template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    column_sums_reduce_kernel(const Accumulate<T>* partial, int64_t runs, int64_t columns,
                              int64_t hidden, T* sums) {
  const int64_t column = blockIdx.x * int64_t{kReduceThreads} + threadIdx.x;
  if (column >= columns) return;
  Accumulate<T> sum = 0;
  for (int64_t r = 0; r < runs; ++r) sum += partial[r * columns + column];
  sums[gate_row(column, hidden)] = from_accumulate<T>(sum);
}

template <bool BAlongK, class T, class Out>
cudaError_t launch_product(const Product<T>& product, const T* bias, const T* bias2,
                           const GemmResult<Out>& c, GemmMath math, cudaStream_t stream) {
  return with_tile<T, true, BAlongK>(product.rows, math, [&](auto* tile) {
    using TileType = std::remove_pointer_t<decltype(tile)>;
    return FC_LAUNCH((gemm_kernel<TileType, T, Out>),
                     product_grid<TileType>(product.rows, product.columns), TileType::kThreads,
                     TileType::kSharedBytes, stream, GemmCall<T, Out>{product, bias, bias2, c});
  });
}

}  // namespace

template <class T, class Out>
cudaError_t launch_gemm_nt(const Matrix<T>& a, const Matrix<T>& b, const T* bias, const T* bias2,
                           const GemmResult<Out>& c, GemmMath math, cudaStream_t stream) {
  return launch_product<true>(make_product(a, b, a.rows, b.rows, a.columns), bias, bias2, c, math,
                              stream);
}

template <class T>
cudaError_t launch_gemm_nn(const Matrix<T>& a, const Matrix<T>& b, const GemmResult<T>& c,
                           GemmMath math, cudaStream_t stream) {
  const T* none = nullptr;
  return launch_product<false>(make_product(a, b, a.rows, b.columns, a.columns), none, none, c,
                               math, stream);
}

int64_t gemm_tn_splits(int64_t rows, int64_t columns, int64_t depth) {
  // Two blocks for each of a large GPU's multiprocessors, and runs that repay the second kernel.
  constexpr int64_t kBlocks = 264, kMostSplits = 64, kLeastDepth = 256;
  const int64_t tiles = ceil_div(rows, 64) * ceil_div(columns, 64);
  if (tiles == 0) return 1;
  int64_t splits = ceil_div(kBlocks, tiles);
  if (splits > ceil_div(depth, kLeastDepth)) splits = ceil_div(depth, kLeastDepth);
  if (splits > kMostSplits) splits = kMostSplits;
  return splits < 1 ? 1 : splits;
}

template <class T>
cudaError_t launch_gemm_tn(const Matrix<T>& a, const Matrix<T>& b, const GemmResult<T>& c,
                           void* workspace, GemmMath math, cudaStream_t stream) {
  Product<T> product = make_product(a, b, a.columns, b.columns, a.rows);
  int64_t splits = gemm_tn_splits(product.rows, product.columns, product.depth);
  product.k_split = ceil_div(ceil_div(product.depth, splits), 32) * 32;
  if (product.k_split > 0) splits = ceil_div(product.depth, product.k_split);
  auto* partial = static_cast<Accumulate<T>*>(workspace);
  const cudaError_t status = with_tile<T, false, false>(product.rows, math, [&](auto* tile) {
    using TileType = std::remove_pointer_t<decltype(tile)>;
    return FC_LAUNCH((gemm_partial_kernel<TileType, T>),
                     product_grid<TileType>(product.rows, product.columns, splits),
                     TileType::kThreads, TileType::kSharedBytes, stream, product, partial);
  });
  if (status != cudaSuccess) return status;
  return FC_LAUNCH((gemm_reduce_kernel<T>),
                   blocks_for(product.rows * product.columns, kReduceThreads), kReduceThreads, 0,
                   stream, partial, splits, product.rows, product.columns, c);
}

template <class T>
int64_t column_sums_workspace_bytes(int64_t rows, int64_t columns) {
  return ceil_div(rows, kSumRows) * columns * static_cast<int64_t>(sizeof(Accumulate<T>));
}

template <class T>
cudaError_t launch_column_sums(const Matrix<T>& a, int64_t hidden, T* sums, void* workspace,
                               cudaStream_t stream) {
  auto* partial = static_cast<Accumulate<T>*>(workspace);
  const int64_t runs = ceil_div(a.rows, kSumRows);
  const cudaError_t status =
      FC_LAUNCH((column_sums_kernel<T>), static_cast<unsigned>(runs * ceil_div(a.columns, 64)), 256,
                256 * sizeof(Accumulate<T>), stream, a, partial);
  if (status != cudaSuccess) return status;
  return FC_LAUNCH((column_sums_reduce_kernel<T>), blocks_for(a.columns, kReduceThreads),
                   kReduceThreads, 0, stream, partial, runs, a.columns, hidden, sums);
}

#define FASTCONV_GEMM_OF(T)                                                                     \
  template cudaError_t launch_gemm_nt(const Matrix<T>&, const Matrix<T>&, const T*, const T*,   \
                                      const GemmResult<T>&, GemmMath, cudaStream_t);            \
  template cudaError_t launch_gemm_nn(const Matrix<T>&, const Matrix<T>&, const GemmResult<T>&, \
                                      GemmMath, cudaStream_t);                                  \
  template cudaError_t launch_gemm_tn(const Matrix<T>&, const Matrix<T>&, const GemmResult<T>&, \
                                      void*, GemmMath, cudaStream_t);                           \
  template int64_t column_sums_workspace_bytes<T>(int64_t, int64_t);                            \
  template cudaError_t launch_column_sums(const Matrix<T>&, int64_t, T*, void*, cudaStream_t)

FASTCONV_GEMM_OF(float);
FASTCONV_GEMM_OF(double);
FASTCONV_GEMM_OF(__nv_bfloat16);
FASTCONV_GEMM_OF(__half);
#undef FASTCONV_GEMM_OF

// Sums of 16-bit operands as they are.
template cudaError_t launch_gemm_nt(const Matrix<__nv_bfloat16>&, const Matrix<__nv_bfloat16>&,
                                    const __nv_bfloat16*, const __nv_bfloat16*,
                                    const GemmResult<float>&, GemmMath, cudaStream_t);
template cudaError_t launch_gemm_nt(const Matrix<__half>&, const Matrix<__half>&, const __half*,
                                    const __half*, const GemmResult<float>&, GemmMath,
                                    cudaStream_t);

}  // namespace fastconv::cuda
