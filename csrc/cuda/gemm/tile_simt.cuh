// SPDX-License-Identifier: MIT
// One tile of a matrix product on the ordinary arithmetic units, float32 or float64:
//
//   sums[m][n] += sum_k A[m][k] * B[n][k]     m in [m0, m0 + Rows), n in [n0, n0 + 64)
//
// A block of 128 threads, 16 across the columns and 8 down the rows; a thread keeps Rows / 8 x 4
// sums, whose four columns are neighbours: with gates of a unit side by side they are one unit. The
// operands pass through shared memory, k-major, 16 deep and double buffered: one barrier per 16
// terms. float32 sums run over 16 terms and are then added to the total: one addition in 17 for a
// third of the error of sums over a hundred rows (common/summation.h). Either operand may be stored
// along k ([m][k]) or across it ([k][m]).
#pragma once

#include <cstdint>

#include "cuda/gemm/matrix.cuh"

namespace fastconv::cuda {

template <class T, int Rows, bool AAlongK, bool BAlongK>
class SimtTile {
 public:
  using Element = T;
  using Sum = Accumulate<T>;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 0;  // as in MmaTile
  static constexpr int kRows = Rows;
  static constexpr int kColumns = 64;
  static constexpr int kDepth = 16;
  static constexpr int kSharedBytes = 2 * kDepth * (Rows + 4 + kColumns + 4) * int(sizeof(Sum));

  __device__ SimtTile(int64_t m0, int64_t n0, void* shared)
      : m0_(m0), n0_(n0), shared_(static_cast<Sum*>(shared)) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums_[i][j] = total_[i][j] = Sum(0);
  }

  // Adds the terms [k_begin, k_end): multiples of kDepth, or k_end is where both operands end. All
  // threads of the block call it together.
  __device__ void add(const Matrix<T>& a, const Matrix<T>& b, int64_t k_begin, int64_t k_end) {
    if (k_begin >= k_end) return;
    fetch(a, b, k_begin);
    int buffer = 0;
    store(buffer);
    __syncthreads();
    for (int64_t k = k_begin; k < k_end; k += kDepth) {
      const bool more = k + kDepth < k_end;
      if (more) fetch(a, b, k + kDepth);
      multiply(buffer);
      if constexpr (kFolds) fold();
      if (more) store(buffer ^ 1);
      __syncthreads();
      buffer ^= 1;
    }
  }

  // Calls body(row, column, sums of four columns) for every row of the tile, inside or not.
  template <class Body>
  __device__ void finish(Body&& body) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t row = m0_ + first_row() + i, column = n0_ + first_column();
      if constexpr (kFolds)
        body(row, column, total_[i]);
      else
        body(row, column, sums_[i]);
    }
  }

 private:
  static constexpr int kPerThread = Rows / 8;
  static constexpr int kAPitch = Rows + 4;
  static constexpr int kBPitch = kColumns + 4;
  static constexpr int kVector = kPer128<T>;
  // float64 has digits to spare, and its sums take the registers.
  static constexpr bool kFolds = sizeof(Sum) == 4;
  static_assert(Rows % 8 == 0 && kDepth % kVector == 0 && kColumns % kVector == 0);

  // The pieces of 16 bytes of an operand that one thread moves.
  template <int Width, bool AlongK>
  struct Pieces {
    static constexpr int kAcross = AlongK ? kDepth / kVector : Width / kVector;
    static constexpr int kCount = Width * kDepth / kVector;
    static constexpr int kEach = (kCount + kThreads - 1) / kThreads;
    Vec128<T> piece[kEach];

    __device__ void fetch(const Matrix<T>& m, int64_t first, int64_t k) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int p = static_cast<int>(threadIdx.x) + i * kThreads;
        if (p >= kCount) continue;
        const int line = p / kAcross, at = p % kAcross * kVector;
        piece[i] =
            AlongK ? load_piece(m, first + line, k + at) : load_piece(m, k + line, first + at);
      }
    }

    // `to` is [kDepth][Pitch].
    template <int Pitch>
    __device__ void store(Sum* to) const {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int p = static_cast<int>(threadIdx.x) + i * kThreads;
        if (p >= kCount) continue;
        const int line = p / kAcross, at = p % kAcross * kVector;
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const int k = AlongK ? at + j : line, w = AlongK ? line : at + j;
          to[k * Pitch + w] = to_accumulate(piece[i][j]);
        }
      }
    }
  };

  __device__ int first_row() const { return static_cast<int>(threadIdx.x) / 16 * kPerThread; }
  __device__ int first_column() const { return static_cast<int>(threadIdx.x) % 16 * 4; }
  __device__ Sum* a_shared(int buffer) { return shared_ + buffer * kDepth * kAPitch; }
  __device__ Sum* b_shared(int buffer) {
    return shared_ + 2 * kDepth * kAPitch + buffer * kDepth * kBPitch;
  }

  __device__ void fetch(const Matrix<T>& a, const Matrix<T>& b, int64_t k) {
    a_.fetch(a, m0_, k);
    b_.fetch(b, n0_, k);
  }

  __device__ void store(int buffer) {
    a_.template store<kAPitch>(a_shared(buffer));
    b_.template store<kBPitch>(b_shared(buffer));
  }

  __device__ void multiply(int buffer) {
    constexpr int kPiece = kPer128<Sum>;
    constexpr int kAPiece = kPerThread < kPiece ? kPerThread : kPiece;
    const Sum* a = a_shared(buffer) + first_row();
    const Sum* b = b_shared(buffer) + first_column();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Sum am[kPerThread], bn[4];
#pragma unroll
      for (int i = 0; i < kPerThread; i += kAPiece) {
        const Vec<Sum, kAPiece> v = load_vector<kAPiece>(a + k * kAPitch + i);
#pragma unroll
        for (int j = 0; j < kAPiece; ++j) am[i + j] = v[j];
      }
#pragma unroll
      for (int i = 0; i < 4; i += kPiece) {
        const Vec<Sum, kPiece> v = load_vector<kPiece>(b + k * kBPitch + i);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) bn[i + j] = v[j];
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums_[i][j] = fma(am[i], bn[j], sums_[i][j]);
    }
  }

  __device__ void fold() {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        total_[i][j] += sums_[i][j];
        sums_[i][j] = Sum(0);
      }
  }

  int64_t m0_, n0_;
  Sum* shared_;
  Sum sums_[kPerThread][4];
  Sum total_[kPerThread][4];
  Pieces<Rows, AAlongK> a_;
  Pieces<kColumns, BAlongK> b_;
};

}  // namespace fastconv::cuda
