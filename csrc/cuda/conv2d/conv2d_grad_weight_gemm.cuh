// SPDX-License-Identifier: MIT
// The kernel behind conv2d_grad_weight_gemm.h. A block computes a tile of kGradWeightTiles - rows
// are output channels, columns (tap, input channel) - over the pixels of one split.
//
//   shared memory: kStages stages of [pixels][channels of the tile] for grad_output and the same
//   for the input; stage s + 3 is copied by cp.async while stage s is multiplied, one barrier per
//   stage
//
// The reduction runs along the rows of shared memory, so that the operands of the mma lie
// transposed: 16-bit types are read by transposing ldmatrix, float32 word by word. A thread copies
// one vector column, whose tap and channel never change, of a few pixels per stage.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/vector.cuh"
#include "cuda/conv2d/conv2d_grad_weight_gemm.h"
#include "cuda/conv2d/conv2d_math.cuh"
#include "cuda/conv2d/conv2d_tiles.h"

namespace fastconv::cuda {

// Everything about a tile that the kernel and its launcher share.
template <typename T, int Number>
struct GradWeightTile {
  static constexpr TileShape kShape = kGradWeightTiles[Number];
  static constexpr int kThreads = kShape.threads();
  static constexpr int kRowFragments = kShape.warp_rows / 16;
  static constexpr int kColumnFragments = kShape.warp_columns / 8;
  static constexpr int kStepPixels = 32 / static_cast<int>(sizeof(T));  // of one mma
  static constexpr int kStagePixels = kPixelSteps * kStepPixels;
  static constexpr int kRowVectors = kShape.rows / kPer128<T>;  // of one pixel, either operand
  static constexpr int kOperandBytes = kStagePixels * kRowVectors * kVectorBytes;
  static constexpr int kStageBytes = 2 * kOperandBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kPixelsPerPass = kThreads / kRowVectors;
  static constexpr int kPasses = kStagePixels / kPixelsPerPass;  // copied by one thread
  static_assert(kShape.rows == kShape.columns);
  static_assert(kStagePixels % kPixelsPerPass == 0);
};

// Byte offset of `vector` of `pixel` in an operand of a stage.
template <typename T, class Tile>
__device__ int pixel_offset(int pixel, int vector) {
  if constexpr (sizeof(T) == 2) return half_pixel_offset(pixel, vector, Tile::kRowVectors);
  return float_pixel_offset(pixel, vector * kPer128<T>, Tile::kRowVectors);
}

// What one thread copies.
template <typename T, class Tile>
struct PixelLoader {
  int32_t output_channel;  // the first of its vector, of all groups
  int32_t input_channel;
  int32_t row_shift;  // of the tap
  int32_t column_shift;
  int pixel;  // of a stage
  int vector;
  bool has_output;  // the thread's columns exist
  bool has_input;

  __device__ void start(const GradWeightGemm& g, int group, int first_row, int first_column) {
    constexpr int kPer = kPer128<T>;
    pixel = static_cast<int>(threadIdx.x) / Tile::kRowVectors;
    vector = static_cast<int>(threadIdx.x) % Tile::kRowVectors;
    const int out_vector = first_row / kPer + vector;
    const int column_vector = first_column / kPer + vector;
    has_output = out_vector < g.out_vectors;
    has_input = column_vector < g.column_vectors;
    int32_t channel_vector, q;
    const int32_t tap = g.vectors_divisor.divmod(has_input ? column_vector : 0, channel_vector);
    const int32_t r = g.taps_divisor.divmod(tap, q);
    row_shift = r * g.dilation_row - g.padding_row;
    column_shift = q * g.dilation_column - g.padding_column;
    output_channel =
        group * static_cast<int32_t>(g.grad_output_strides.channel) + out_vector * kPer;
    input_channel = group * static_cast<int32_t>(g.input_strides.channel) + channel_vector * kPer;
  }

  // Starts the copies of the stage of pixels [first, first + kStagePixels), of which those before
  // `last` exist.
  __device__ void copy(unsigned char* stage, const GradWeightGemm& g, int32_t first, int32_t last) {
#pragma unroll
    for (int pass = 0; pass < Tile::kPasses; ++pass) {
      const int line = pixel + pass * Tile::kPixelsPerPass;
      const bool exists = line < last - first;
      int32_t rest, j;
      const int32_t image = g.image_divisor.divmod(exists ? first + line : 0, rest);
      const int32_t i = g.columns_divisor.divmod(rest, j);
      const int32_t row = i * g.stride_row + row_shift;
      const int32_t column = j * g.stride_column + column_shift;
      const bool valid_output = exists && has_output;
      const bool valid_input = exists && has_input &&
                               static_cast<uint32_t>(row) < static_cast<uint32_t>(g.in_height) &&
                               static_cast<uint32_t>(column) < static_cast<uint32_t>(g.in_width);
      const int64_t from_output = image * g.grad_output_strides.batch +
                                  i * g.grad_output_strides.row + j * g.grad_output_strides.column +
                                  output_channel;
      const int64_t from_input = image * g.input_strides.batch + row * g.input_strides.row +
                                 column * g.input_strides.column + input_channel;
      unsigned char* to = stage + pixel_offset<T, Tile>(line, vector);
      cp_async_16(to,
                  valid_output ? static_cast<const T*>(g.grad_output) + from_output : g.grad_output,
                  valid_output ? kVectorBytes : 0);
      cp_async_16(to + Tile::kOperandBytes,
                  valid_input ? static_cast<const T*>(g.input) + from_input : g.input,
                  valid_input ? kVectorBytes : 0);
    }
  }
};

// The lane's share of every address in a stage: for 16-bit types the rows it names to ldmatrix; for
// float32 its word within the four turns of the swizzle.
template <typename T, class Tile>
struct LaneOffsets {
  int turns[4];

  __device__ explicit LaneOffsets(int lane) {
#pragma unroll
    for (int turn = 0; turn < 4; ++turn)
      turns[turn] = float_lane_offset(lane, turn, Tile::kRowVectors);
  }
  // The word at (pixel + lane % 4, first + lane / 4); constants but for what the lane adds.
  __device__ uint32_t word(const unsigned char* operand, int pixel, int first) const {
    return *reinterpret_cast<const uint32_t*>(operand + turns[float_turn(first)] +
                                              float_rest_offset(pixel, first, Tile::kRowVectors));
  }
};

// The fragment of one mma step, `pixel` on: sixteen rows of an operand, `first` on from the warp's
// own `warp_first`. All but the latter are constants where this is inlined.
template <typename T, class Tile>
__device__ void load_row_fragment(uint32_t (&words)[4], const unsigned char* operand,
                                  const LaneOffsets<T, Tile>& offsets, int warp_first, int pixel,
                                  int first, int lane) {
  if constexpr (sizeof(T) == 2) {
    const LaneRow at = a_transposed_lane_row(lane);
    ldmatrix_x4_trans(
        words, operand + half_pixel_offset(pixel + at.row, (warp_first + first) / 8 + at.vector,
                                           Tile::kRowVectors));
  } else {
    operand += float_rest_offset(0, warp_first, Tile::kRowVectors);
#pragma unroll
    for (int r = 0; r < 4; ++r)
      words[r] = offsets.word(operand, pixel + 4 * (r / 2), first + 8 * (r % 2));
  }
}

// Two neighbouring fragments of eight columns.
template <typename T, class Tile>
__device__ void load_column_fragments(uint32_t (&low)[2], uint32_t (&high)[2],
                                      const unsigned char* operand,
                                      const LaneOffsets<T, Tile>& offsets, int warp_first,
                                      int pixel, int first, int lane) {
  if constexpr (sizeof(T) == 2) {
    const LaneRow at = b_transposed_lane_row(lane);
    uint32_t words[4];
    ldmatrix_x4_trans(
        words, operand + half_pixel_offset(pixel + at.row, (warp_first + first) / 8 + at.vector,
                                           Tile::kRowVectors));
    low[0] = words[0];
    low[1] = words[1];
    high[0] = words[2];
    high[1] = words[3];
  } else {
    operand += float_rest_offset(0, warp_first, Tile::kRowVectors);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      low[r] = offsets.word(operand, pixel + 4 * r, first);
      high[r] = offsets.word(operand, pixel + 4 * r, first + 8);
    }
  }
}

// sums += the product of one stage; `rows` and `columns` are the stage's operands.
template <class Math, class Tile>
__device__ void multiply_pixels(TileSums<Tile>& sums, const unsigned char* rows,
                                const unsigned char* columns,
                                const LaneOffsets<typename Math::Element, Tile>& offsets,
                                int warp_row, int warp_column, int lane) {
  using T = typename Math::Element;
#pragma unroll
  for (int step = 0; step < kPixelSteps; ++step) {
    const int pixel = step * Tile::kStepPixels;
    typename Math::template Operand<2> b_operand[Tile::kColumnFragments];
#pragma unroll
    for (int j = 0; j < Tile::kColumnFragments; j += 2) {
      uint32_t low[2], high[2];
      load_column_fragments<T, Tile>(low, high, columns, offsets, warp_column, pixel, 8 * j, lane);
      Math::prepare(b_operand[j], low);
      Math::prepare(b_operand[j + 1], high);
    }
#pragma unroll
    for (int i = 0; i < Tile::kRowFragments; ++i) {
      uint32_t words[4];
      load_row_fragment<T, Tile>(words, rows, offsets, warp_row, pixel, 16 * i, lane);
      typename Math::template Operand<4> a_operand;
      Math::prepare(a_operand, words);
#pragma unroll
      for (int j = 0; j < Tile::kColumnFragments; ++j)
        Math::mma(sums[i][j], a_operand, b_operand[j]);
    }
  }
}

// The stage's sum of grad_output at one channel of the tile.
template <typename T, class Tile>
__device__ float bias_of_stage(const unsigned char* stage, int channel) {
  constexpr int kPer = kPer128<T>;
  float sum = 0.0f;
#pragma unroll 2
  for (int pixel = 0; pixel < Tile::kStagePixels; ++pixel) {
    const unsigned char* vector = stage + pixel_offset<T, Tile>(pixel, channel / kPer);
    sum += to_float(reinterpret_cast<const T*>(vector)[channel % kPer]);
  }
  return sum;
}

// Writes the warp's results; `row` is its first output channel, `column` its first column.
template <class Tile>
__device__ void store_partials(const TileSums<Tile>& sums, float* partials, int row, int column,
                               int rows, int columns, int lane) {
#pragma unroll
  for (int i = 0; i < Tile::kRowFragments; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int o = row + 16 * i + 8 * half + lane / 4;
      if (o >= rows) continue;
      float* line = partials + static_cast<int64_t>(o) * columns;
#pragma unroll
      for (int j = 0; j < Tile::kColumnFragments; ++j) {
        const int at = column + 8 * j + lane % 4 * 2;
        if (at < columns)
          store_vector<2>(line + at,
                          Vec<float, 2>{{sums[i][j][2 * half], sums[i][j][2 * half + 1]}});
      }
    }
  }
}

// Grid: (tiles of columns, tiles of output channels, groups * splits).
template <class Math, int Number>
__global__ void __launch_bounds__(GradWeightTile<typename Math::Element, Number>::kThreads,
                                  Math::kFreshSums ? 1 : 2)
    conv2d_grad_weight_gemm_kernel(const GradWeightGemm g) {
  using T = typename Math::Element;
  using Tile = GradWeightTile<T, Number>;
  FC_DYNAMIC_SHARED(unsigned char, shared);
  constexpr TileShape kShape = Tile::kShape;
  constexpr int kWarpsAcross = kShape.columns / kShape.warp_columns;
  const int group = static_cast<int>(blockIdx.z) % g.groups;
  const int split = static_cast<int>(blockIdx.z) / g.groups;
  const int first_row = static_cast<int>(blockIdx.y) * kShape.rows;
  const int first_column = static_cast<int>(blockIdx.x) * kShape.columns;
  const int32_t first = split * g.pixels_per_split;
  const int32_t last =
      g.pixels - first < g.pixels_per_split ? g.pixels : first + g.pixels_per_split;

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_row = warp / kWarpsAcross * kShape.warp_rows;
  const int warp_column = warp % kWarpsAcross * kShape.warp_columns;
  const bool sums_bias =
      g.bias >= 0 && blockIdx.x == 0 && static_cast<int>(threadIdx.x) < kShape.rows;

  PixelLoader<T, Tile> loader;
  loader.start(g, group, first_row, first_column);
  const int stages = (last - first + Tile::kStagePixels - 1) / Tile::kStagePixels;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < stages)
      loader.copy(shared + s * Tile::kStageBytes, g, first + s * Tile::kStagePixels, last);
    cp_async_commit();
  }

  const LaneOffsets<T, Tile> offsets(lane);
  TileSums<Tile> sums;
  clear<Tile>(sums);
  float bias = 0.0f;
  int reading = 0;
  int writing = kStages - 1;
  for (int s = 0; s < stages; ++s) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // stage s has arrived, and nobody reads the one that is overwritten next
    const int next = s + kStages - 1;
    if (next < stages)
      loader.copy(shared + writing * Tile::kStageBytes, g, first + next * Tile::kStagePixels, last);
    cp_async_commit();
    const unsigned char* stage = shared + reading * Tile::kStageBytes;
    add_product<Math, Tile>(sums, [&](TileSums<Tile>& to) {
      multiply_pixels<Math, Tile>(to, stage, stage + Tile::kOperandBytes, offsets, warp_row,
                                  warp_column, lane);
    });
    if (sums_bias) bias += bias_of_stage<T, Tile>(stage, static_cast<int>(threadIdx.x));
    reading = reading + 1 == kStages ? 0 : reading + 1;
    writing = writing + 1 == kStages ? 0 : writing + 1;
  }
  cp_async_wait<0>();

  float* row = g.partials + split * g.row_stride;
  const int channel = first_row + static_cast<int>(threadIdx.x);
  if (sums_bias && channel < g.out_channels) row[g.bias + group * g.out_channels + channel] = bias;
  const int columns = g.column_vectors * kPer128<T>;
  store_partials<Tile>(sums, row + static_cast<int64_t>(group * g.out_channels) * columns,
                       first_row + warp_row, first_column + warp_column, g.out_channels, columns,
                       lane);
}

template <class Math, int Number>
cudaError_t launch_conv2d_grad_weight_tile(const GradWeightGemm& g, cudaStream_t stream) {
  using Tile = GradWeightTile<typename Math::Element, Number>;
  const int64_t columns = static_cast<int64_t>(g.column_vectors) * kPer128<typename Math::Element>;
  const int64_t splits = ceil_div(g.pixels, g.pixels_per_split);
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, Tile::kShape.columns)),
                  static_cast<unsigned>(ceil_div(g.out_channels, Tile::kShape.rows)),
                  static_cast<unsigned>(g.groups * splits));
  return FC_LAUNCH((conv2d_grad_weight_gemm_kernel<Math, Number>), grid, Tile::kThreads,
                   Tile::kSharedBytes, stream, g);
}

}  // namespace fastconv::cuda
