// SPDX-License-Identifier: MIT
// Moves between the forms of a batch of sequences, and numbers of the host on their way to the GPU.
#include "cuda/common/divmod.h"
#include "cuda/lstm/lstm_plan.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;

// As many as the arguments of a kernel have room for, with some left.
struct Integers {
  static constexpr int kCount = 448;
  int64_t values[kCount];
};

__global__ void __launch_bounds__(kThreads)
    store_integers_kernel(Integers from, int count, int64_t* to) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) to[i] = from.values[i];
}

struct Move {
  const int64_t* order;
  const int64_t* row_start;
  int64_t batch, width, elements;
};

__device__ inline int64_t first_row(const Move& m, int64_t step) {
  return m.row_start == nullptr ? step * m.batch : m.row_start[step];
}

// A thread per element of the padded batch: those that have a row move, the others are left out or
// become zeros.
template <class T, bool ToPadded>
__global__ void __launch_bounds__(kThreads) lstm_move_rows_kernel(Move m, const T* from, T* to) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= m.elements) return;
  const int64_t place = i / m.width, column = i - place * m.width;
  const int64_t step = place / m.batch, r = place - step * m.batch;
  const int64_t row = first_row(m, step) + r;
  const bool exists = row < first_row(m, step + 1);
  const int64_t padded = (step * m.batch + m.order[r]) * m.width + column;
  if (!ToPadded) {
    if (exists) to[row * m.width + column] = from[padded];
  } else {
    to[padded] = exists ? from[row * m.width + column] : from_accumulate<T>(Accumulate<T>(0));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    lstm_copy_states_kernel(const T* from, int64_t count, T* to) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < count) to[i] = from == nullptr ? from_accumulate<T>(Accumulate<T>(0)) : from[i];
}

template <class T, bool ToPadded>
cudaError_t move_rows(const LstmRowMove<T>& move, const T* from, T* to, cudaStream_t stream) {
  const LstmShape& s = move.shape;
  const Move m{move.order, move.row_start, s.batch, move.width, s.steps * s.batch * move.width};
  return FC_LAUNCH((lstm_move_rows_kernel<T, ToPadded>), blocks_for(m.elements, kThreads), kThreads,
                   0, stream, m, from, to);
}

}  // namespace

cudaError_t launch_store_integers(const int64_t* host, int64_t count, int64_t* device,
                                  cudaStream_t stream) {
  for (int64_t done = 0; done < count; done += Integers::kCount) {
    const int64_t left = count - done;
    const int some = left < Integers::kCount ? static_cast<int>(left) : Integers::kCount;
    Integers values{};
    for (int i = 0; i < some; ++i) values.values[i] = host[done + i];
    const cudaError_t status =
        FC_LAUNCH(store_integers_kernel, 1, kThreads, 0, stream, values, some, device + done);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t launch_lstm_copy_states(const T* from, int64_t first_row, int64_t rows, int64_t width,
                                    T* to, cudaStream_t stream) {
  const int64_t skipped = first_row * width, count = (rows - first_row) * width;
  return FC_LAUNCH((lstm_copy_states_kernel<T>), blocks_for(count, kThreads), kThreads, 0, stream,
                   from == nullptr ? from : from + skipped, count, to + skipped);
}

template <class T>
cudaError_t launch_lstm_rows_from_padded(const LstmRowMove<T>& move, const T* padded, T* rows,
                                         cudaStream_t stream) {
  return move_rows<T, false>(move, padded, rows, stream);
}

template <class T>
cudaError_t launch_lstm_rows_to_padded(const LstmRowMove<T>& move, const T* rows, T* padded,
                                       cudaStream_t stream) {
  return move_rows<T, true>(move, rows, padded, stream);
}

#define FASTCONV_LSTM_ROWS_OF(T)                                                         \
  template cudaError_t launch_lstm_copy_states(const T*, int64_t, int64_t, int64_t, T*,  \
                                               cudaStream_t);                            \
  template cudaError_t launch_lstm_rows_from_padded(const LstmRowMove<T>&, const T*, T*, \
                                                    cudaStream_t);                       \
  template cudaError_t launch_lstm_rows_to_padded(const LstmRowMove<T>&, const T*, T*, cudaStream_t)

FASTCONV_LSTM_ROWS_OF(float);
FASTCONV_LSTM_ROWS_OF(double);
FASTCONV_LSTM_ROWS_OF(__nv_bfloat16);
FASTCONV_LSTM_ROWS_OF(__half);
#undef FASTCONV_LSTM_ROWS_OF

}  // namespace fastconv::cuda
