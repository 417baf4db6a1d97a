// SPDX-License-Identifier: MIT
// The operands of the tiled matrix products, and their loads from global memory.
#pragma once

#include <cstdint>

#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"

namespace fastconv::cuda {

// Where row `row` of a matrix of gates lies when the matrix keeps the gates i, f, g, o one after
// another, `hidden` rows each, but the kernels number the four gates of a unit one after another.
__host__ __device__ inline int64_t gate_row(int64_t row, int64_t hidden) {
  return hidden == 0 ? row : (row & 3) * hidden + (row >> 2);
}

// Rows of `columns` contiguous elements, `pitch` apart. Reads outside give zeros.
template <class T>
struct Matrix {
  const T* data;
  int64_t rows;
  int64_t columns;
  int64_t pitch;
  int64_t hidden;  // rows are numbered as gate_row says; 0: as they lie
  const T* rest;   // rows from `split` on are rows of this matrix; nullptr: they are zeros
  int64_t split;
  bool aligned;  // vectors of 16 bytes that start at a multiple of their length may be loaded whole
};

template <class T>
inline Matrix<T> make_matrix(const T* data, int64_t rows, int64_t columns, int64_t pitch,
                             int64_t hidden = 0) {
  const bool aligned = aligned16(data) && pitch % kPer128<T> == 0;
  return {data, rows, columns, pitch, hidden, nullptr, rows, aligned};
}

// Rows [0, split) of `data`, the others of `rest`; either may be nullptr, meaning zeros.
template <class T>
inline Matrix<T> make_split_matrix(const T* data, int64_t split, const T* rest, int64_t rows,
                                   int64_t columns, int64_t pitch) {
  const bool aligned = aligned16(data) && aligned16(rest) && pitch % kPer128<T> == 0;
  return {data, rows, columns, pitch, 0, rest, split, aligned};
}

// The 16 bytes that start at column `column` of row `row`; `column` is a multiple of kPer128<T>.
template <class T>
__device__ inline Vec128<T> load_piece(const Matrix<T>& m, int64_t row, int64_t column) {
  Vec128<T> piece;
#pragma unroll
  for (int i = 0; i < kPer128<T>; ++i) piece[i] = from_accumulate<T>(Accumulate<T>(0));
  if (row >= m.rows || column >= m.columns) return piece;
  const T* base = row < m.split ? m.data : m.rest;
  if (base == nullptr) return piece;
  const T* p = base + gate_row(row, m.hidden) * m.pitch + column;
  if (m.aligned && column + kPer128<T> <= m.columns) return load128(p);
#pragma unroll
  for (int i = 0; i < kPer128<T>; ++i)
    if (column + i < m.columns) piece[i] = p[i];
  return piece;
}

}  // namespace fastconv::cuda
