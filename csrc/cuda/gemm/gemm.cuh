// SPDX-License-Identifier: MIT
// Matrix products whose sums are only stored. Row-major matrices, float32 sums (float64 for
// float64); 16-bit types, and float32 where GemmMath says so, run on the tensor cores and need
// compute capability 8.0. One order of summation for given sizes: bitwise the same on every GPU and
// in every run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/common/types.cuh"
#include "cuda/gemm/matrix.cuh"

namespace fastconv::cuda {

// What float32 products may do: every term exact, or operands rounded to tf32.
enum class GemmMath { kExact, kTf32 };

// Where a product goes: row m to data + gate_row(m, hidden) * pitch.
template <class Out>
struct GemmResult {
  Out* data;
  int64_t pitch;
  int64_t hidden;
  Out* tail;  // rows from tail_begin on are stored here too, as [., columns]; or nullptr
  int64_t tail_begin;
};

// C[m][n] = sum_k A[m][k] B[n][k] + bias[n] + bias2[n]; biases, which may be nullptr, lie in the
// order gate_row(n, b.hidden), as the rows of B do. Out is T or Accumulate<T>.
template <class T, class Out>
cudaError_t launch_gemm_nt(const Matrix<T>& a, const Matrix<T>& b, const T* bias, const T* bias2,
                           const GemmResult<Out>& c, GemmMath math, cudaStream_t stream);

// C[m][n] = sum_k A[m][k] B[k][n]
template <class T>
cudaError_t launch_gemm_nn(const Matrix<T>& a, const Matrix<T>& b, const GemmResult<T>& c,
                           GemmMath math, cudaStream_t stream);

// C[m][n] = sum_k A[k][m] B[k][n], for a long sum over few results: blocks add runs of k into the
// workspace, a second kernel adds the runs in order.
template <class T>
cudaError_t launch_gemm_tn(const Matrix<T>& a, const Matrix<T>& b, const GemmResult<T>& c,
                           void* workspace, GemmMath math, cudaStream_t stream);

// Runs of k that launch_gemm_tn cuts the sum into, and the workspace that it needs for them.
int64_t gemm_tn_splits(int64_t rows, int64_t columns, int64_t depth);
template <class T>
int64_t gemm_tn_workspace_bytes(int64_t rows, int64_t columns, int64_t depth) {
  return gemm_tn_splits(rows, columns, depth) * rows * columns *
         static_cast<int64_t>(sizeof(Accumulate<T>));
}

// sums[gate_row(n, hidden)] = sum over rows of a[row][n], in a fixed order.
template <class T>
cudaError_t launch_column_sums(const Matrix<T>& a, int64_t hidden, T* sums, void* workspace,
                               cudaStream_t stream);
template <class T>
int64_t column_sums_workspace_bytes(int64_t rows, int64_t columns);

}  // namespace fastconv::cuda
