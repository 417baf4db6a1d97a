// SPDX-License-Identifier: MIT
// Matrix products as kernels: a tile per block, and something to do with its sums. For .cu files of
// ops that finish the sums themselves; gemm.cuh has the products that only store them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/gemm/gemm.cuh"
#include "cuda/gemm/matrix.cuh"
#include "cuda/gemm/tile_mma.cuh"
#include "cuda/gemm/tile_simt.cuh"

namespace fastconv::cuda {

// Where rows are few, tiles of 16 spread them over more blocks.
inline constexpr int64_t kFewRows = 16;

// Calls body(tile), a null pointer to the type of tile that suits so many rows of T: the tensor
// cores take the 16-bit types and, where float32 may be rounded to tf32, that.
template <class T, bool AAlongK, bool BAlongK, class Body>
cudaError_t with_tile(int64_t rows, GemmMath math, Body&& body) {
  const auto with = [&](auto few, auto tall) {
    using Few = typename decltype(few)::type;
    using Tall = typename decltype(tall)::type;
    return rows <= kFewRows ? body(static_cast<Few*>(nullptr)) : body(static_cast<Tall*>(nullptr));
  };
  if constexpr (sizeof(T) == 2) {
    return with(std::type_identity<MmaTile<MmaUnit16<T>, 16, AAlongK, BAlongK>>{},
                std::type_identity<MmaTile<MmaUnit16<T>, 64, AAlongK, BAlongK>>{});
  } else {
    if constexpr (sizeof(T) == 4)
      if (math == GemmMath::kTf32)
        return with(std::type_identity<MmaTile<MmaUnitTf32, 16, AAlongK, BAlongK>>{},
                    std::type_identity<MmaTile<MmaUnitTf32, 64, AAlongK, BAlongK>>{});
    // float64 sums take twice the registers.
    constexpr int kTall = sizeof(T) == 8 ? 32 : 64;
    return with(std::type_identity<SimtTile<T, 16, AAlongK, BAlongK>>{},
                std::type_identity<SimtTile<T, kTall, AAlongK, BAlongK>>{});
  }
}

// A product of up to two parts, [A | A2] [B | B2]^T: `rows` x `columns`, tiles in blockIdx.x, runs
// of k in blockIdx.y.
template <class T>
struct Product {
  int64_t rows, columns;
  Matrix<T> a, b;
  int64_t depth;
  Matrix<T> a2, b2;
  int64_t depth2;   // 0: no second part
  int64_t k_split;  // terms of the first part per blockIdx.y; a multiple of 32, or `depth`
};

template <class T>
inline Product<T> make_product(const Matrix<T>& a, const Matrix<T>& b, int64_t rows,
                               int64_t columns, int64_t depth) {
  return {rows, columns, a, b, depth, a, b, 0, depth};
}

template <class TileType>
inline dim3 product_grid(int64_t rows, int64_t columns, int64_t splits = 1) {
  const int64_t tiles = ceil_div(rows, TileType::kRows) * ceil_div(columns, TileType::kColumns);
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits));
}

// Calls body(row, column, sums of four columns) for rows inside the product and columns whose first
// is inside.
template <class TileType, class Body>
__device__ inline void run_product(const Product<typename TileType::Element>& p, Body&& body) {
  FC_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t across = ceil_div(p.columns, TileType::kColumns);
  const int64_t m0 = blockIdx.x / across * TileType::kRows;
  const int64_t n0 = blockIdx.x % across * TileType::kColumns;
  TileType tile(m0, n0, shared);
  const int64_t k_begin = blockIdx.y * p.k_split;
  tile.add(p.a, p.b, k_begin, k_begin + p.k_split < p.depth ? k_begin + p.k_split : p.depth);
  tile.add(p.a2, p.b2, 0, p.depth2);
  tile.finish([&](int64_t row, int64_t column, const typename TileType::Sum(&sums)[4]) {
    if (row < p.rows && column < p.columns) body(row, column, sums);
  });
}

}  // namespace fastconv::cuda
