// SPDX-License-Identifier: MIT
// Geometry of the tensor-core kernels: which tile a block computes, where its operands lie in
// shared memory, which lane holds what; and the proofs, evaluated by the compiler, that no element
// is missed, none is counted twice and no access has a bank conflict.
//
// Everything is counted in vectors of 16 bytes: 8 values of 16 bits or 4 of float32. An mma
// consumes 32 bytes of the reduction in either case (m16n8k16, m16n8k8), so forward and grad input
// need only one geometry, whose operands are rows of 64 bytes along the reduction. The weight
// gradient reduces along pixels; its operands are rows of channels, one row per pixel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastconv::cuda {

inline constexpr int kVectorBytes = 16;
inline constexpr int kWarp = 32;

// Tile of a block: rows x columns of the result, split over warps that own warp_rows x
// warp_columns.
struct TileShape {
  int rows;
  int columns;
  int warp_rows;
  int warp_columns;

  constexpr int warps() const { return rows / warp_rows * (columns / warp_columns); }
  constexpr int threads() const { return warps() * kWarp; }
};

// Large tiles read operands least often; small ones fill the GPU when the result is small.
inline constexpr TileShape kConvTiles[] = {
    {128, 128, 64, 32}, {128, 64, 32, 32}, {64, 64, 32, 32}, {64, 32, 32, 16}};
inline constexpr int kConvTileCount = 4;
// The first tile for the split product, which keeps two sets of sums: 64 x 32 would need more
// registers than a thread has.
inline constexpr int kFirstTf32x3Tile = 1;

inline constexpr TileShape kGradWeightTiles[] = {{128, 128, 64, 32}, {64, 64, 32, 32}};
inline constexpr int kGradWeightTileCount = 2;
inline constexpr int kFirstTf32x3GradWeightTile = 1;

inline constexpr int kStages = 4;  // of shared memory: one computed on, three on their way

// --- Forward and grad input: rows of 64 bytes ----------------------------------------------------

inline constexpr int kStepVectors = 4;  // of a row per stage: two mma steps
inline constexpr int kStepBytes = kStepVectors * kVectorBytes;

// Byte offset of vector `vector` of row `row` of an operand tile. Two rows share 128 bytes, the
// width of all banks, so the row pair chooses the permutation.
__host__ __device__ constexpr int conv_tile_offset(int row, int vector) {
  return row * kStepBytes + ((vector ^ ((row >> 1) & 3)) * kVectorBytes);
}

// --- Weight gradient: rows of channels -----------------------------------------------------------

inline constexpr int kPixelSteps = 2;  // mma steps per stage

// 16-bit types, read by transposing ldmatrix: eight pixels of one vector in one go.
__host__ __device__ constexpr int half_pixel_offset(int pixel, int vector, int row_vectors) {
  return (pixel * row_vectors + (vector ^ (pixel & 7))) * kVectorBytes;
}

// float32, read word by word: four pixels of eight neighbouring channels in one go.
__host__ __device__ constexpr int float_pixel_offset(int pixel, int channel, int row_vectors) {
  const int vector = channel / 4;
  return (pixel * row_vectors + (vector ^ (2 * (pixel & 3)))) * kVectorBytes + channel % 4 * 4;
}

// The same for lane 4 g + t reading channel first + g of pixel `pixel` + t, first and pixel
// multiples of 8 and 4: the lane's part for one of four values of `turn`, and the rest, which is
// the same for all lanes. A kernel keeps the four parts in registers and adds constants.
__host__ __device__ constexpr int float_lane_offset(int lane, int turn, int row_vectors) {
  const int g = lane / 4;
  const int t = lane % 4;
  return (t * row_vectors + (2 * turn ^ 2 * t) + g / 4) * kVectorBytes + g % 4 * 4;
}
__host__ __device__ constexpr int float_turn(int first) {
  return first / 8 % 4;
}
__host__ __device__ constexpr int float_rest_offset(int pixel, int first, int row_vectors) {
  return (pixel * row_vectors + first / 32 * 8) * kVectorBytes;
}

// --- Which row of shared memory a lane names to ldmatrix -----------------------------------------

struct LaneRow {
  int row;     // of the operand, within 16
  int vector;  // along the reduction, within the 2 of one mma
};

// A operand: matrices (rows 0-7, k low), (rows 8-15, k low), (rows 0-7, k high), (rows 8-15, k
// high).
__host__ __device__ constexpr LaneRow a_lane_row(int lane) {
  return {lane % 16, lane / 16};
}

// B operand, two mma columns at once: (columns 0-7, k low), (0-7, k high), (8-15, low), (8-15,
// high).
__host__ __device__ constexpr LaneRow b_lane_row(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

// The same two for operands that lie transposed, one row of shared memory per k: `row` is k within
// 16, `vector` the group of eight rows or columns of the operand.
__host__ __device__ constexpr LaneRow a_transposed_lane_row(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2};
}
__host__ __device__ constexpr LaneRow b_transposed_lane_row(int lane) {
  return {lane % 16, lane / 16};
}

// --- Proofs --------------------------------------------------------------------------------------

namespace proofs {

// True when the offsets of `count` vectors are a permutation of 0, 16, ..., 16 (count - 1).
template <int Rows, int Vectors, typename Offset>
constexpr bool is_bijective(Offset offset) {
  bool taken[Rows * Vectors] = {};
  for (int row = 0; row < Rows; ++row) {
    for (int vector = 0; vector < Vectors; ++vector) {
      const int at = offset(row, vector);
      if (at % kVectorBytes != 0 || at < 0 || at / kVectorBytes >= Rows * Vectors) return false;
      if (taken[at / kVectorBytes]) return false;
      taken[at / kVectorBytes] = true;
    }
  }
  return true;
}

// True when the eight 16-byte accesses of one phase of an instruction hit different groups of
// banks.
template <typename Offset>
constexpr bool phase_is_conflict_free(Offset offset_of_lane, int first_lane) {
  unsigned groups = 0;
  for (int lane = first_lane; lane < first_lane + 8; ++lane)
    groups |= 1u << (offset_of_lane(lane) / kVectorBytes % 8);
  return groups == 0xffu;
}

template <typename Offset>
constexpr bool is_conflict_free(Offset offset_of_lane) {
  for (int first = 0; first < kWarp; first += 8)
    if (!phase_is_conflict_free(offset_of_lane, first)) return false;
  return true;
}

constexpr bool conv_reads_are_conflict_free() {
  for (int step = 0; step < 2; ++step) {
    const auto a = [step](int lane) {
      return conv_tile_offset(a_lane_row(lane).row, 2 * step + a_lane_row(lane).vector);
    };
    const auto b = [step](int lane) {
      return conv_tile_offset(b_lane_row(lane).row, 2 * step + b_lane_row(lane).vector);
    };
    if (!is_conflict_free(a) || !is_conflict_free(b)) return false;
  }
  return true;
}

// A thread copies vector thread % 4 of row thread / 4.
constexpr bool conv_writes_are_conflict_free() {
  return is_conflict_free([](int lane) { return conv_tile_offset(lane / 4, lane % 4); });
}

template <int RowVectors>
constexpr bool half_pixel_reads_are_conflict_free() {
  for (int first = 0; first + 1 < RowVectors; first += 2) {
    const auto a = [first](int lane) {
      const LaneRow at = a_transposed_lane_row(lane);
      return half_pixel_offset(at.row, first + at.vector, RowVectors);
    };
    const auto b = [first](int lane) {
      const LaneRow at = b_transposed_lane_row(lane);
      return half_pixel_offset(at.row, first + at.vector, RowVectors);
    };
    if (!is_conflict_free(a) || !is_conflict_free(b)) return false;
  }
  return true;
}

// Lane 4 g + t reads channel first + g of pixel t: 32 different banks of 4 bytes.
template <int RowVectors>
constexpr bool float_pixel_reads_are_conflict_free() {
  for (int first = 0; first < RowVectors * 4; first += 8) {
    for (int pixel = 0; pixel < 8; pixel += 4) {
      uint32_t banks = 0;
      for (int lane = 0; lane < kWarp; ++lane)
        banks |=
            1u << (float_pixel_offset(pixel + lane % 4, first + lane / 4, RowVectors) / 4 % 32);
      if (banks != 0xffffffffu) return false;
    }
  }
  return true;
}

template <int RowVectors>
constexpr bool float_lane_offsets_add_up() {
  for (int lane = 0; lane < kWarp; ++lane)
    for (int pixel = 0; pixel < 16; pixel += 4)
      for (int first = 0; first < RowVectors * 4; first += 8)
        if (float_lane_offset(lane, float_turn(first), RowVectors) +
                float_rest_offset(pixel, first, RowVectors) !=
            float_pixel_offset(pixel + lane % 4, first + lane / 4, RowVectors))
          return false;
  return true;
}

// Every element of a 16 x 8 result belongs to exactly one lane and register (layout: ptx.cuh).
constexpr bool result_fragment_covers_once() {
  int count[16 * 8] = {};
  for (int lane = 0; lane < kWarp; ++lane)
    for (int i = 0; i < 4; ++i) ++count[(lane / 4 + 8 * (i / 2)) * 8 + lane % 4 * 2 + i % 2];
  for (int n : count)
    if (n != 1) return false;
  return true;
}

// What ldmatrix puts into register m of a lane, by the rows that the lanes name, is what the mma
// wants there: 32-bit word t of row g (+ 8) of the right half of k.
constexpr bool ldmatrix_rows_match_the_fragments() {
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4;
    for (int m = 0; m < 4; ++m) {
      const LaneRow a = a_lane_row(8 * m + g);
      if (a.row != g + 8 * (m % 2) || a.vector != m / 2) return false;
      const LaneRow b = b_lane_row(8 * m + g);
      if (b.row != g + 8 * (m / 2) || b.vector != m % 2) return false;
      // Transposed, the lane gets column g of the matrix and elements 2 t, 2 t + 1 along its rows,
      // which count k: the matrix must start at k 8 (m / 2) and row 8 (m % 2) of the A operand.
      const LaneRow at = a_transposed_lane_row(8 * m);
      if (at.row != 8 * (m / 2) || at.vector != m % 2) return false;
      const LaneRow bt = b_transposed_lane_row(8 * m);
      if (bt.row != 8 * (m % 2) || bt.vector != m / 2) return false;
    }
  }
  return true;
}

constexpr bool tile_divides(const TileShape& t) {
  return t.rows % t.warp_rows == 0 && t.columns % t.warp_columns == 0 && t.warp_rows % 16 == 0 &&
         t.warp_columns % 16 == 0 && (t.rows * kStepVectors) % t.threads() == 0 &&
         (t.columns * kStepVectors) % t.threads() == 0;
}

constexpr bool tiles_divide() {
  for (const TileShape& t : kConvTiles)
    if (!tile_divides(t)) return false;
  for (const TileShape& t : kGradWeightTiles)
    if (!tile_divides(t)) return false;
  return true;
}

static_assert(is_bijective<128, kStepVectors>(conv_tile_offset));
static_assert(conv_reads_are_conflict_free());
static_assert(conv_writes_are_conflict_free());
static_assert(is_bijective<32, 8>([](int p, int v) { return half_pixel_offset(p, v, 8); }));
static_assert(is_bijective<32, 16>([](int p, int v) { return half_pixel_offset(p, v, 16); }));
static_assert(half_pixel_reads_are_conflict_free<8>());
static_assert(half_pixel_reads_are_conflict_free<16>());
static_assert(is_bijective<16, 16>([](int p, int v) { return float_pixel_offset(p, 4 * v, 16); }));
static_assert(is_bijective<16, 32>([](int p, int v) { return float_pixel_offset(p, 4 * v, 32); }));
static_assert(float_pixel_reads_are_conflict_free<16>());
static_assert(float_pixel_reads_are_conflict_free<32>());
static_assert(float_lane_offsets_add_up<16>());
static_assert(float_lane_offsets_add_up<32>());
static_assert(result_fragment_covers_once());
static_assert(ldmatrix_rows_match_the_fragments());
static_assert(tiles_divide());

}  // namespace proofs
}  // namespace fastconv::cuda
