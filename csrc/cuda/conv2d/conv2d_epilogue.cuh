// SPDX-License-Identifier: MIT
// What the tensor-core kernel does with the sums of its tile: bias, activation, pooling, stores.
//
// They pass through shared memory, 16 rows of a warp at a time, so that global stores are 16 bytes
// along the channels (channels-last results, which are written as such and never copied) or, for
// other layouts, neighbouring pixels. NCHW results are written here, not transposed by a further
// kernel as NCHW inputs are: a store of a warp is then two runs of 16 pixels, whole sectors but for
// the ends, and every byte is written once. A transposition would store a quarter of the
// instructions here, or an eighth in 16 bits, but write, read and write the result: three times the
// bytes, and one more launch. The input is different because each pixel is read kernel_height *
// kernel_width times.
//
// The rows of a strip are whole windows, the taps of each one after the other: who stores a pooled
// value reads the taps of its window from shared memory, and no window lies in two warps. Pooled
// NCHW rows come in runs of 16 / taps pixels only, parts of sectors, for the cache to put together;
// the full-size result would be 2 * taps times the bytes, once written and once read.
#pragma once

#include "cuda/common/activation.cuh"
#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"
#include "cuda/conv2d/conv2d_gemm.h"
#include "cuda/conv2d/conv2d_math.cuh"
#include "cuda/conv2d/conv2d_pixels.cuh"
#include "cuda/conv2d/conv2d_tiles.h"

namespace fastconv::cuda {

inline constexpr int kStripRows = 16;
static_assert(kStripRows == 1 << kMaxLogWindowTaps);

// Where the warp's rows of the result go.
struct DestRows {
  int64_t first_row;  // of the strip
  int64_t end;        // rows of the whole product
  int first_channel;  // of the warp, in the group
  int group;
};

// Element number of channel 0 of the group in the result, for window `window` of the strip.
__device__ inline int64_t dest_pixel(const ConvGemm& g, const GemmPhase& phase, const DestRows& at,
                                     int window) {
  const auto first = static_cast<int32_t>(at.first_row >> g.window.log_taps());
  const GemmPixel p = window_at(phase, first + window);
  return p.image * g.dest_strides.batch +
         (p.row * g.dest_step_row + phase.rows.dest_first) * g.dest_strides.row +
         (p.column * g.dest_step_column + phase.columns.dest_first) * g.dest_strides.column +
         static_cast<int64_t>(at.group) * g.channels * g.dest_strides.channel;
}

// Count channels of one row of the product, from `channel` of the group on, with bias and
// activation; `staged` is the first of them.
template <typename T, int Count>
__device__ void load_activated(float (&x)[Count], const float* staged, const ConvGemm& g,
                               const DestRows& at, int channel) {
  const Vec<float, Count> values = load_vector<Count>(staged);
#pragma unroll
  for (int i = 0; i < Count; ++i) x[i] = values[i];
  if (g.bias != nullptr) {
    const T* bias =
        static_cast<const T*>(g.bias) + static_cast<int64_t>(at.group) * g.channels + channel;
#pragma unroll
    for (int i = 0; i < Count; ++i)
      if (channel + i < g.channels) x[i] += to_float(bias[i]);
  }
  activate(x, g.activation, g.negative_slope);
}

template <typename T, int Count>
__device__ void round_to(float (&x)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) x[i] = to_float(from_float<T>(x[i]));
}

// Count channels of the result and, of max pooling, the taps that won.
template <int Count>
struct WindowResult {
  float value[Count];
  Vec<uint8_t, Count> winner;
};

// The window whose first row is `staged`. Values are rounded to T before they are compared or
// added, as they would be had they been stored: equal ones are then the same ones.
template <typename T, class Tile, int Count>
__device__ WindowResult<Count> finish_window(const float* staged, const ConvGemm& g,
                                             const DestRows& at, int channel) {
  WindowResult<Count> y{};
  load_activated<T>(y.value, staged, g, at, channel);
  if (g.window.pool == BlockPool::kNone) return y;
  round_to<T>(y.value);
  const int taps = g.window.taps();
#pragma unroll 1
  for (int tap = 1; tap < taps; ++tap) {
    float x[Count];
    load_activated<T>(x, staged + tap * Tile::kStagedRow, g, at, channel);
    round_to<T>(x);
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if (g.window.pool == BlockPool::kAvg) {
        y.value[i] += x[i];
      } else if (x[i] > y.value[i] || x[i] != x[i]) {  // NaN beats all
        y.value[i] = x[i];
        y.winner[i] = static_cast<uint8_t>(tap);
      }
    }
  }
  if (g.window.pool == BlockPool::kAvg) {
    const float share = 1.0f / static_cast<float>(taps);  // exact
#pragma unroll
    for (int i = 0; i < Count; ++i) y.value[i] *= share;
  }
  return y;
}

// Stores the warp's staged strip, 16 bytes along the channels.
template <typename T, class Tile>
__device__ void store_vectors(const float* staged, const ConvGemm& g, const GemmPhase& phase,
                              const DestRows& at, int lane) {
  constexpr int kPer = kPer128<T>;
  constexpr int kRowVectors = Tile::kShape.warp_columns / kPer;
#pragma unroll
  for (int v = 0; v < kStripRows * kRowVectors / kWarp; ++v) {
    const int window = (v * kWarp + lane) / kRowVectors;
    const int row = window << g.window.log_taps();
    const int column = (v * kWarp + lane) % kRowVectors * kPer;
    const int channel = at.first_channel + column;
    if (row >= kStripRows) return;
    if (at.first_row + row >= at.end || channel >= g.channels) continue;
    Vec128<T> values;
    Vec<uint8_t, kPer> winners;
#pragma unroll
    for (int part = 0; part < kPer; part += 4) {  // few at a time: sums of other strips are alive
      const WindowResult<4> y = finish_window<T, Tile, 4>(
          staged + row * Tile::kStagedRow + column + part, g, at, channel + part);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[part + i] = from_float<T>(y.value[i]);
        winners[part + i] = y.winner[i];
      }
    }
    const int64_t to = dest_pixel(g, phase, at, window) + channel;
    store128(static_cast<T*>(g.dest) + to, values);
    if (g.offsets != nullptr) store_vector(g.offsets + to, winners);
  }
}

// The same element by element, neighbouring lanes on neighbouring windows.
template <typename T, class Tile>
__device__ void store_elements(const float* staged, const ConvGemm& g, const GemmPhase& phase,
                               const DestRows& at, int lane) {
  const int windows = kStripRows >> g.window.log_taps();
  const int window = lane & (windows - 1);
  const int row = window << g.window.log_taps();
  if (at.first_row + row >= at.end) return;
  const int64_t pixel = dest_pixel(g, phase, at, window);
  const int step = kWarp / kStripRows << g.window.log_taps();
  for (int column = lane >> (kMaxLogWindowTaps - g.window.log_taps());
       column < Tile::kShape.warp_columns; column += step) {
    const int channel = at.first_channel + column;
    if (channel >= g.channels) return;
    const WindowResult<1> y =
        finish_window<T, Tile, 1>(staged + row * Tile::kStagedRow + column, g, at, channel);
    const int64_t to = pixel + channel * g.dest_strides.channel;
    static_cast<T*>(g.dest)[to] = from_float<T>(y.value[0]);
    if (g.offsets != nullptr) g.offsets[to] = y.winner[0];
  }
}

template <typename T, class Tile>
__device__ void store_result(const TileSums<Tile>& sums, float* staged, const ConvGemm& g,
                             const GemmPhase& phase, DestRows at, int lane) {
#pragma unroll
  for (int i = 0; i < Tile::kRowFragments; ++i) {
    float* corner = staged + lane / 4 * Tile::kStagedRow + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < Tile::kColumnFragments; ++j) {
      store_vector<2>(corner + 8 * j, Vec<float, 2>{{sums[i][j][0], sums[i][j][1]}});
      store_vector<2>(corner + 8 * Tile::kStagedRow + 8 * j,
                      Vec<float, 2>{{sums[i][j][2], sums[i][j][3]}});
    }
    __syncwarp();
    if (g.vector_stores) {
      store_vectors<T, Tile>(staged, g, phase, at, lane);
    } else {
      store_elements<T, Tile>(staged, g, phase, at, lane);
    }
    __syncwarp();
    at.first_row += kStripRows;
  }
}

}  // namespace fastconv::cuda
