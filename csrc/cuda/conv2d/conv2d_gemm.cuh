// SPDX-License-Identifier: MIT
// The kernel behind conv2d_gemm.h. A block computes a tile of kConvTiles: rows are pixels of the
// result, columns its channels, the reduction runs over (tap, channel) in vectors of 16 bytes.
//
//   shared memory: kStages stages of [rows of the source tile][rows of the weights], 64 bytes a
//   row; stage s + 3 is copied by cp.async while stage s is multiplied, one barrier per stage
//
// A thread copies the same vector column of several rows. Where a row starts in the source, and
// which taps lie inside of the image (a bit per kernel row and one per kernel column), is worked
// out once; per stage there is one division by constants to find (tap, channel) and a test of two
// bits. Vectors outside are filled with zeros by the copy itself.
//
// The result passes through shared memory: conv2d_epilogue.cuh.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/conv2d/conv2d_epilogue.cuh"
#include "cuda/conv2d/conv2d_gemm.h"
#include "cuda/conv2d/conv2d_math.cuh"
#include "cuda/conv2d/conv2d_pixels.cuh"
#include "cuda/conv2d/conv2d_tiles.h"

namespace fastconv::cuda {

// Everything about a tile that the kernel and its launcher share.
template <int Number>
struct ConvTile {
  static constexpr TileShape kShape = kConvTiles[Number];
  static constexpr int kThreads = kShape.threads();
  static constexpr int kRowFragments = kShape.warp_rows / 16;
  static constexpr int kColumnFragments = kShape.warp_columns / 8;
  static constexpr int kSourceBytes = kShape.rows * kStepBytes;
  static constexpr int kStageBytes = kSourceBytes + kShape.columns * kStepBytes;
  static constexpr int kRowsPerPass = kThreads / kStepVectors;
  static constexpr int kSourceRows = kShape.rows / kRowsPerPass;  // copied by one thread
  static constexpr int kWeightRows = kShape.columns / kRowsPerPass;
  // A row of the staged result: eight words of padding keep the fragments' stores free of
  // conflicts.
  static constexpr int kStagedRow = kShape.warp_columns + 8;
  static constexpr int kStagedBytes = kShape.warps() * 16 * kStagedRow * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kStagedBytes <= kSharedBytes);
  static_assert(kStagedRow % 32 == 8 || kStagedRow % 32 == 24);
};

// Where the rows that a thread copies start in the source, and their validity masks.
template <int Rows>
struct SourceRows {
  int64_t offset[Rows];  // elements; of tap (0, 0), possibly outside of the image
  uint32_t taps[Rows];   // bit r: kernel row r is inside; bit 16 + q: kernel column q is
};

// Bit t: position first + t * step lies inside of [0, size).
__device__ inline uint32_t taps_inside(int32_t first, int32_t step, int32_t taps, int32_t size) {
  uint32_t mask = 0;
  for (int32_t t = 0; t < taps; ++t)
    mask |=
        static_cast<uint32_t>(static_cast<uint32_t>(first + t * step) < static_cast<uint32_t>(size))
        << t;
  return mask;
}

template <int Rows>
__device__ void find_source_rows(SourceRows<Rows>& rows, const ConvGemm& g, const GemmPhase& phase,
                                 int64_t first_row, int rows_per_pass) {
  const int64_t end = g.rows(phase);
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    const int64_t m = first_row + i * rows_per_pass;
    rows.offset[i] = 0;
    rows.taps[i] = 0;
    if (m >= end) continue;
    const GemmPixel p = pixel_of(g.window, phase, static_cast<int32_t>(m));
    const int32_t row = p.row * g.source_step_row + phase.rows.first;
    const int32_t column = p.column * g.source_step_column + phase.columns.first;
    rows.offset[i] = p.image * g.source_strides.batch + row * g.source_strides.row +
                     column * g.source_strides.column;
    rows.taps[i] = taps_inside(row, g.tap_step_row, phase.rows.taps, g.source_height) |
                   taps_inside(column, g.tap_step_column, phase.columns.taps, g.source_width) << 16;
  }
}

// What the copies of one thread need besides the number of the stage.
template <typename T, class Tile>
struct StageLoader {
  SourceRows<Tile::kSourceRows> rows;
  const T* source;   // of the group
  const T* weights;  // the thread's first row, its vector column
  int weight_rows;   // rows from the thread's first one that exist, in steps of kRowsPerPass
  int row;           // of the tile
  int vector;

  __device__ void start(const ConvGemm& g, const GemmPhase& phase, int group, int64_t first_row,
                        int first_column) {
    constexpr int kPer = kPer128<T>;
    row = static_cast<int>(threadIdx.x) / kStepVectors;
    vector = static_cast<int>(threadIdx.x) % kStepVectors;
    find_source_rows(rows, g, phase, first_row + row, Tile::kRowsPerPass);
    source = static_cast<const T*>(g.source) + group * g.source_strides.channel;
    weight_rows = g.channels - first_column - row;
    weights = static_cast<const T*>(g.weights) +
              (group * g.group_weights + phase.weights +
               static_cast<int64_t>(first_column + row) * phase.vectors + vector) *
                  kPer;
  }

  // Starts the copies of one stage; `first` is its first vector along the reduction.
  __device__ void copy(unsigned char* stage, const ConvGemm& g, const GemmPhase& phase, int first) {
    constexpr int kPer = kPer128<T>;
    const int k = first + vector;
    const bool inside = k < phase.vectors;
    int32_t channel_vector, q;
    const int32_t tap = g.vectors_divisor.divmod(inside ? k : 0, channel_vector);
    const int32_t r = phase.taps_divisor.divmod(tap, q);
    const int64_t shift = static_cast<int64_t>(r * g.tap_step_row) * g.source_strides.row +
                          static_cast<int64_t>(q * g.tap_step_column) * g.source_strides.column +
                          channel_vector * kPer;
#pragma unroll
    for (int i = 0; i < Tile::kSourceRows; ++i) {
      const bool valid = inside && (rows.taps[i] >> r & rows.taps[i] >> (16 + q) & 1u) != 0;
      cp_async_16(stage + conv_tile_offset(row + i * Tile::kRowsPerPass, vector),
                  valid ? source + (rows.offset[i] + shift) : source, valid ? kVectorBytes : 0);
    }
#pragma unroll
    for (int i = 0; i < Tile::kWeightRows; ++i) {
      const bool valid = inside && i * Tile::kRowsPerPass < weight_rows;
      const T* from =
          weights + (static_cast<int64_t>(i * Tile::kRowsPerPass) * phase.vectors + first) * kPer;
      cp_async_16(
          stage + Tile::kSourceBytes + conv_tile_offset(row + i * Tile::kRowsPerPass, vector),
          valid ? from : source, valid ? kVectorBytes : 0);
    }
  }
};

// sums += the product of one stage. `a` and `b` are the warp's parts of the operands' tiles: the
// byte that starts its first row.
template <class Math, class Tile>
__device__ void multiply_stage(TileSums<Tile>& sums, const unsigned char* a, const unsigned char* b,
                               int lane) {
  const LaneRow a_row = a_lane_row(lane);
  const LaneRow b_row = b_lane_row(lane);
#pragma unroll
  for (int step = 0; step < kStepVectors / 2; ++step) {
    typename Math::template Operand<2> b_operand[Tile::kColumnFragments];
#pragma unroll
    for (int j = 0; j < Tile::kColumnFragments; j += 2) {
      uint32_t words[4];
      ldmatrix_x4(words, b + conv_tile_offset(8 * j + b_row.row, 2 * step + b_row.vector));
      const uint32_t low[2] = {words[0], words[1]};
      const uint32_t high[2] = {words[2], words[3]};
      Math::prepare(b_operand[j], low);
      Math::prepare(b_operand[j + 1], high);
    }
    // Columns first: there are fewer of them, and all stay in registers while the rows pass by.
#pragma unroll
    for (int i = 0; i < Tile::kRowFragments; ++i) {
      uint32_t words[4];
      ldmatrix_x4(words, a + conv_tile_offset(16 * i + a_row.row, 2 * step + a_row.vector));
      typename Math::template Operand<4> a_operand;
      Math::prepare(a_operand, words);
#pragma unroll
      for (int j = 0; j < Tile::kColumnFragments; ++j)
        Math::mma(sums[i][j], a_operand, b_operand[j]);
    }
  }
}

// Grid: (tiles of rows, tiles of channels, groups * phases).
template <class Math, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Math::kFreshSums ? 1 : 2)
    conv2d_gemm_kernel(const ConvGemm g) {
  using T = typename Math::Element;
  FC_DYNAMIC_SHARED(unsigned char, shared);
  constexpr TileShape kShape = Tile::kShape;
  constexpr int kWarpsAcross = kShape.columns / kShape.warp_columns;
  const int group = static_cast<int>(blockIdx.z) % g.groups;
  const GemmPhase& phase = g.phases[static_cast<int>(blockIdx.z) / g.groups];
  const int64_t end = g.rows(phase);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kShape.rows;
  const int first_column = static_cast<int>(blockIdx.y) * kShape.columns;
  if (first_row >= end) return;  // phases differ in their pixels; the grid is that of the largest

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_row = warp / kWarpsAcross * kShape.warp_rows;
  const int warp_column = warp % kWarpsAcross * kShape.warp_columns;

  StageLoader<T, Tile> loader;
  loader.start(g, phase, group, first_row, first_column);
  const int stages = (phase.vectors + kStepVectors - 1) / kStepVectors;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < stages) loader.copy(shared + s * Tile::kStageBytes, g, phase, s * kStepVectors);
    cp_async_commit();
  }

  TileSums<Tile> sums;
  clear<Tile>(sums);
  int reading = 0;
  int writing = kStages - 1;
  for (int s = 0; s < stages; ++s) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // stage s has arrived, and nobody reads the one that is overwritten next
    const int next = s + kStages - 1;
    if (next < stages)
      loader.copy(shared + writing * Tile::kStageBytes, g, phase, next * kStepVectors);
    cp_async_commit();
    const unsigned char* stage = shared + reading * Tile::kStageBytes;
    add_product<Math, Tile>(sums, [&](TileSums<Tile>& to) {
      multiply_stage<Math, Tile>(to, stage + conv_tile_offset(warp_row, 0),
                                 stage + Tile::kSourceBytes + conv_tile_offset(warp_column, 0),
                                 lane);
    });
    reading = reading + 1 == kStages ? 0 : reading + 1;
    writing = writing + 1 == kStages ? 0 : writing + 1;
  }
  cp_async_wait<0>();
  __syncthreads();  // the result is staged where the operands were
  float* staged = reinterpret_cast<float*>(shared) + warp * 16 * Tile::kStagedRow;
  store_result<T, Tile>(sums, staged, g, phase,
                        {first_row + warp_row, end, first_column + warp_column, group}, lane);
}

template <class Math, int Number>
cudaError_t launch_conv2d_gemm_tile(const ConvGemm& g, cudaStream_t stream) {
  using Tile = ConvTile<Number>;
  int64_t rows = 0;
  for (int i = 0; i < g.phase_count; ++i) {
    const int64_t of_phase = g.rows(g.phases[i]);
    rows = of_phase > rows ? of_phase : rows;
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, Tile::kShape.rows)),
                  static_cast<unsigned>(ceil_div(g.channels, Tile::kShape.columns)),
                  static_cast<unsigned>(g.groups * g.phase_count));
  return FC_LAUNCH((conv2d_gemm_kernel<Math, Tile>), grid, Tile::kThreads, Tile::kSharedBytes,
                   stream, g);
}

}  // namespace fastconv::cuda
