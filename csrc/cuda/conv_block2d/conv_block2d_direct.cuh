// SPDX-License-Identifier: MIT
// Direct convolution with everything behind it, for few channels.
//
//   z[n, o, i, j] = bias[o] + sum_{c, r, q} weight[o, c, r, q] *
//                                           x[n, c, i * stride + r - pad, j * stride + q - pad]
//
// A thread computes one 2 x 2 window of z for KT output channels (4 KT sums in registers), so that
// activation and pooling need no other thread: each weight it loads serves four pixels, and without
// a stride each pixel 2 KT sums per kernel row. A block takes a rectangle of windows (or a few
// whole images) and `groups` x KT channels; the pixels and weights of a chunk of input channels lie
// in shared memory, weights as [channel][tap][output channel], so that a tap's KT weights are one
// broadcast vector load. Blocks walk over the batch and keep weights that fit in one chunk.
//
// Sums longer than kMaxTerms are added up in parts, for float32's sake. The input gradient runs the
// same kernel on a tile that is expanded in shared memory from the pooled gradient: skipping the
// three zeros of each window would trade one multiply-add for a load, an add and a store.
#pragma once

#include <cstdint>

#include "cuda/common/activation.cuh"
#include "cuda/common/block_pool.h"
#include "cuda/common/launch.h"
#include "cuda/common/vector.cuh"
#include "cuda/conv_block2d/conv_block2d_tile.cuh"

namespace fastconv::cuda {

inline constexpr int kDirectThreads = 256;  // of a block, at most

inline constexpr int kAnyStep = 0;

enum class Source { kImage, kMaxGrad };

// What the kernel gets: the sizes of DirectConv in 32 bits, and how the work is cut.
struct DirectParams {
  int64_t batch, items;  // items: tiles of all images
  int in_channels, in_height, in_width;
  int out_channels, out_rows, out_columns;  // of the output in memory
  int kernel_height, kernel_width, padding_height, padding_width, stride_height, stride_width;
  ImageSource image;
  MaxGradSource max_grad;
  const float* weight;
  int64_t weight_out_stride, weight_in_stride, weight_tap_stride;
  bool mirrored;
  const float* bias;
  Activation activation;
  float slope;
  BlockPool pool;
  float* output;
  Strides4 output_strides;
  bool vector_channels;  // the output's channels can be stored in vectors
  uint8_t* offsets;
  const float* mean_grad;

  int cell_rows, cell_columns;  // windows of an image
  int tile_rows, tile_columns;  // windows of a tile
  int tiles_down, tiles_across;
  int images;  // per tile; more than one only where a tile holds whole images
  TileLayout tile;
  int chunk;  // input channels in shared memory at a time
  int step;   // of these, how many make one unbroken sum
  int weight_pitch;
  FastDivmod by_chunk_weights;  // chunk * taps
  FastDivmod by_taps;

  __device__ int image_floats() const { return chunk * tile.plane(); }
};

// Sums of a window's four pixels, row by row.
template <int KT>
using Sums = float[4][KT];

template <int KT>
__device__ inline void add_tap(Sums<KT>& sums, const float* weights, float a0, float a1, float b0,
                               float b1) {
  float w[KT];
  if constexpr (KT % 4 == 0) {
#pragma unroll
    for (int t = 0; t < KT; t += 4) {
      const Vec<float, 4> v = load_vector<4>(weights + t);
#pragma unroll
      for (int i = 0; i < 4; ++i) w[t + i] = v[i];
    }
  } else {
#pragma unroll
    for (int t = 0; t < KT; t += 2) {
      const Vec<float, 2> v = load_vector<2>(weights + t);
      w[t] = v[0];
      w[t + 1] = v[1];
    }
  }
#pragma unroll
  for (int t = 0; t < KT; ++t) {
    sums[0][t] = fmaf(a0, w[t], sums[0][t]);
    sums[1][t] = fmaf(a1, w[t], sums[1][t]);
    sums[2][t] = fmaf(b0, w[t], sums[2][t]);
    sums[3][t] = fmaf(b1, w[t], sums[3][t]);
  }
}

template <int Size>
__device__ inline void load_row(float (&row)[Size], const float* x) {
#pragma unroll
  for (int q = 0; q < Size; q += 2) {
    const Vec<float, 2> pair = load_vector<2>(x + q);
    row[q] = pair[0];
    row[q + 1] = pair[1];
  }
}

// One input channel: `x` is the window's first pixel in the tile, `weights` those of tap 0. Two
// pixel rows are held at a time, those that the window's upper and lower pixels read; without a
// stride the lower one is the upper one of the next kernel row.
template <int K, int Step, int KT>
__device__ inline void add_channel(Sums<KT>& sums, const float* x, const float* weights,
                                   const DirectParams& p) {
  const int pitch = p.tile.pitch;
  if constexpr (K > 0) {
    constexpr int kSize = (K + Step + 1) / 2 * 2;  // pairs
    float upper[kSize], lower[kSize];
    load_row(upper, x);
#pragma unroll(K <= 5 ? K : 1)
    for (int r = 0; r < K; ++r) {
      load_row(lower, x + (r + Step) * pitch);
#pragma unroll
      for (int q = 0; q < K; ++q)
        add_tap<KT>(sums, weights + (r * K + q) * p.weight_pitch, upper[q], upper[q + Step],
                    lower[q], lower[q + Step]);
      if constexpr (Step == 1) {
#pragma unroll
        for (int q = 0; q < kSize; ++q) upper[q] = lower[q];
      } else {
        if (r + 1 < K) load_row(upper, x + (r + 1) * pitch);
      }
    }
  } else if constexpr (Step == kAnyStep) {
    const int right = p.stride_width, below = p.stride_height * pitch;
    for (int r = 0; r < p.kernel_height; ++r, x += pitch)
      for (int q = 0; q < p.kernel_width; ++q, weights += p.weight_pitch)
        add_tap<KT>(sums, weights, x[q], x[q + right], x[below + q], x[below + q + right]);
  } else {
    for (int r = 0; r < p.kernel_height; ++r, x += pitch) {
      float a0 = x[0], b0 = x[pitch];
      for (int q = 1; q <= p.kernel_width; ++q, weights += p.weight_pitch) {
        const float a1 = x[q], b1 = x[pitch + q];
        add_tap<KT>(sums, weights, a0, a1, b0, b1);
        a0 = a1;
        b0 = b1;
      }
    }
  }
}

template <int KT>
__device__ inline void clear(Sums<KT>& sums) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int t = 0; t < KT; ++t) sums[i][t] = 0.0f;
}

// Adds `channels` input channels of shared memory to `total`.
template <int K, int Step, int KT>
__device__ inline void add_chunk(Sums<KT>& total, const float* x, const float* weights,
                                 int channels, const DirectParams& p) {
  const int taps = p.kernel_height * p.kernel_width;
  for (int first = 0; first < channels; first += p.step) {
    const int last = min(first + p.step, channels);
    Sums<KT> sums;
    clear<KT>(sums);
    for (int c = first; c < last; ++c)
      add_channel<K, Step, KT>(sums, x + c * p.tile.plane(), weights + c * taps * p.weight_pitch,
                               p);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int t = 0; t < KT; ++t) total[i][t] += sums[i][t];
  }
}

// The block's output channels as [input channel][tap][output channel]; channels that do not exist
// have weight zero.
__device__ inline void load_weights(const DirectParams& p, int first_out, int outs, int first_in,
                                    float* shared, int thread, int threads) {
  const int taps = p.by_taps.divisor();
  const int count = outs * p.by_chunk_weights.divisor();
  for (int at = thread; at < count; at += threads) {
    int within, tap;
    const int out = p.by_chunk_weights.divmod(at, within);
    const int in = p.by_taps.divmod(within, tap);
    const bool exists = first_out + out < p.out_channels && first_in + in < p.in_channels;
    const int64_t from = (first_out + out) * p.weight_out_stride +
                         (first_in + in) * p.weight_in_stride +
                         (p.mirrored ? taps - 1 - tap : tap) * p.weight_tap_stride;
    shared[within * p.weight_pitch + out] = exists ? __ldg(p.weight + from) : 0.0f;
  }
}

// Where a tile of the batch lies, in images and windows.
struct TilePlace {
  int64_t image;
  int row;
  int column;
};

__device__ inline TilePlace tile_place(const DirectParams& p, int64_t item) {
  const int tiles = p.tiles_down * p.tiles_across;
  const int64_t group = item / tiles;
  const int within = static_cast<int>(item - group * tiles);
  const int down = within / p.tiles_across;
  return {group * p.images, down * p.tile_rows, (within - down * p.tiles_across) * p.tile_columns};
}

template <Source S>
__device__ inline void load_pixels(const DirectParams& p, const TilePlace& place, int first_channel,
                                   int channels, float* shared, int thread, int threads) {
  const int top = 2 * place.row * p.stride_height - p.padding_height;
  const int left = 2 * place.column * p.stride_width - p.padding_width;
  for (int image = 0; image < p.images && place.image + image < p.batch; ++image) {
    const int64_t n = place.image + image;
    float* target = shared + image * p.image_floats();
    if constexpr (S == Source::kImage) {
      ImageSource source = p.image;
      source.data += n * source.strides.batch + first_channel * source.strides.channel;
      load_tile(p.tile, source, channels, top, left, target, thread, threads);
    } else {
      MaxGradSource source = p.max_grad;
      const int64_t from = (n * p.in_channels + first_channel) * source.cell_rows *
                           static_cast<int64_t>(source.cell_columns);
      source.grad += from;
      source.output += from;
      source.offsets += from;
      load_tile(p.tile, source, channels, top, left, target, thread, threads);
    }
  }
}

// One window of the output channels from `channel` on.
struct Window {
  int64_t image;
  int channel;
  int row;
  int column;
};

// Number of the window of channel `channel + t` in a contiguous tensor of windows.
__device__ inline int64_t number_of(const DirectParams& p, const Window& w, int t) {
  return ((w.image * p.out_channels + w.channel + t) * p.cell_rows + w.row) * p.cell_columns +
         w.column;
}

// Where the window's pixels go: the first one of its first channel, and which others there are.
struct WindowPixels {
  float* first;
  bool right;
  bool below;
};

__device__ inline WindowPixels pixels_of(const DirectParams& p, const Window& w) {
  const Strides4& s = p.output_strides;
  const int i = 2 * w.row, j = 2 * w.column;
  float* first = p.output + w.image * s.batch + w.channel * s.channel + i * s.row + j * s.column;
  return {first, j + 1 < p.out_columns, i + 1 < p.out_rows};
}

__device__ inline void store_pixels(const DirectParams& p, const WindowPixels& to, int t,
                                    const float (&z)[4]) {
  const Strides4& s = p.output_strides;
  float* pixel = to.first + t * s.channel;
  pixel[0] = z[0];
  if (to.right) pixel[s.column] = z[1];
  if (to.below) pixel[s.row] = z[2];
  if (to.right && to.below) pixel[s.row + s.column] = z[3];
}

// KT channels of each pixel in vectors.
template <int KT>
__device__ inline void store_channels(const DirectParams& p, const Window& w, const Sums<KT>& z) {
  constexpr int kVector = KT % 4 == 0 ? 4 : 2;
  const WindowPixels to = pixels_of(p, w);
#pragma unroll
  for (int tap = 0; tap < 4; ++tap) {
    if ((tap % 2 == 1 && !to.right) || (tap / 2 == 1 && !to.below)) continue;
    float* pixel = to.first + tap / 2 * p.output_strides.row + tap % 2 * p.output_strides.column;
#pragma unroll
    for (int t = 0; t < KT; t += kVector) {
      Vec<float, kVector> values;
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] = z[tap][t + i];
      if (w.channel + t < p.out_channels) store_vector(pixel + t, values);
    }
  }
}

__device__ inline void store_pooled(const DirectParams& p, int64_t at, const float (&z)[4]) {
  if (p.pool == BlockPool::kAvg) {
    p.output[at] = (z[0] + z[1] + z[2] + z[3]) * 0.25f;
    return;
  }
  float best = z[0];
  int winner = 0;
#pragma unroll
  for (int tap = 1; tap < 4; ++tap) {
    const bool wins = z[tap] > best || z[tap] != z[tap];  // NaN beats all
    best = wins ? z[tap] : best;
    winner = wins ? tap : winner;
  }
  p.output[at] = best;
  if (p.offsets != nullptr) p.offsets[at] = static_cast<uint8_t>(winner);
}

// Replaces the activated values of a window by the gradient of z from that of their average.
__device__ inline void mean_grad(const DirectParams& p, int64_t at, float (&y)[4]) {
  const float grad = __ldg(p.mean_grad + at) * 0.25f;
#pragma unroll
  for (int tap = 0; tap < 4; ++tap) y[tap] = activation_grad(grad, y[tap], p.activation, p.slope);
}

template <int KT, Source S>
__device__ inline void finish(const DirectParams& p, Sums<KT>& z, const Window& window) {
  if constexpr (S == Source::kImage) {
#pragma unroll
    for (int t = 0; t < KT; ++t) {
      const bool exists = p.bias != nullptr && window.channel + t < p.out_channels;
      const float bias = exists ? __ldg(p.bias + window.channel + t) : 0.0f;
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) z[tap][t] += bias;
    }
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) activate<KT>(z[tap], p.activation, p.slope);
    if (p.vector_channels) return store_channels<KT>(p, window, z);
  }
  const WindowPixels pixels = pixels_of(p, window);
#pragma unroll
  for (int t = 0; t < KT; ++t) {
    if (window.channel + t >= p.out_channels) continue;
    float values[4] = {z[0][t], z[1][t], z[2][t], z[3][t]};
    if (S == Source::kImage && p.mean_grad != nullptr)
      mean_grad(p, number_of(p, window, t), values);
    if (S == Source::kMaxGrad || p.mean_grad != nullptr || p.pool == BlockPool::kNone) {
      store_pixels(p, pixels, t, values);
    } else {
      store_pooled(p, number_of(p, window, t), values);
    }
  }
}

// Grid: (tiles, output channels / (groups * KT)). Block: (windows of a tile, groups). K: height and
// width of the kernel, or 0 for any. Step: both strides, or kAnyStep, for any kernel.
template <int K, int Step, int KT, Source S>
__global__ void __launch_bounds__(kDirectThreads, 2)
    conv_block2d_direct_kernel(const DirectParams p) {
  FC_DYNAMIC_SHARED(float, shared);
  const int threads = blockDim.x * blockDim.y;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int outs = blockDim.y * KT;
  const int block_out = blockIdx.y * outs;
  float* const weights = shared;  // first, because they are read as vectors of 16 bytes
  float* const pixels = shared + p.by_chunk_weights.divisor() * p.weight_pitch;

  const int tile_cells = p.tile_rows * p.tile_columns;
  const int image = threadIdx.x / tile_cells, cell = threadIdx.x - image * tile_cells;
  const int row = cell / p.tile_columns, column = cell - row * p.tile_columns;
  const float* const own_pixels = pixels + image * p.image_floats() +
                                  2 * row * p.stride_height * p.tile.pitch +
                                  2 * column * p.stride_width;
  const float* const own_weights = weights + threadIdx.y * KT;

  for (int64_t item = blockIdx.x; item < p.items; item += gridDim.x) {
    const TilePlace place = tile_place(p, item);
    Sums<KT> total;
    clear<KT>(total);
    for (int first = 0; first < p.in_channels; first += p.chunk) {
      const int channels = min(p.chunk, p.in_channels - first);
      __syncthreads();  // the last chunk is no longer read
      load_pixels<S>(p, place, first, channels, pixels, thread, threads);
      if (p.chunk < p.in_channels || item == blockIdx.x)
        load_weights(p, block_out, outs, first, weights, thread, threads);
      __syncthreads();
      add_chunk<K, Step, KT>(total, own_pixels, own_weights, channels, p);
    }
    const int i = place.row + row, j = place.column + column;
    if (place.image + image < p.batch && i < p.cell_rows && j < p.cell_columns)
      finish<KT, S>(
          p, total,
          Window{place.image + image, block_out + static_cast<int>(threadIdx.y) * KT, i, j});
  }
}

}  // namespace fastconv::cuda
