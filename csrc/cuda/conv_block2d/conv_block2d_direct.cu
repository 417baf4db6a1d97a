// SPDX-License-Identifier: MIT
// Direct convolution with everything behind it, for few channels.
//
//   z[n, o, i, j] = bias[o] + sum_{c, r, q} weight[o, c, r, q] * x[n, c, i + r - pad, j + q - pad]
//
// A thread computes one 2 x 2 window of z for KT output channels (4 KT sums in registers), so that
// activation and pooling need no other thread: each weight it loads serves four pixels, each pixel
// 2 KT sums per kernel row. A block takes a rectangle of windows (or a few whole images) and
// `groups` x KT channels; the pixels and weights of a chunk of input channels lie in shared memory,
// weights as [channel][tap][output channel], so that a tap's KT weights are one broadcast vector
// load. Blocks walk over the batch and keep weights that fit in one chunk.
//
// Sums longer than kMaxTerms are added up in parts, for float32's sake. The input gradient runs the
// same kernel on a tile that is expanded in shared memory from the pooled gradient: skipping the
// three zeros of each window would trade one multiply-add for a load, an add and a store.
#include <algorithm>

#include "common/checked.h"
#include "common/summation.h"
#include "cuda/common/launch.h"
#include "cuda/common/vector.cuh"
#include "cuda/conv_block2d/conv_block2d_direct.h"
#include "cuda/conv_block2d/conv_block2d_tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kMaxTileColumns = 16;
constexpr int kMaxGroups = 4;
constexpr int kSharedFloats = 10 * 1024;  // 40 KB: two blocks or more per multiprocessor
constexpr int64_t kBlocksPerMultiprocessor = 4;
constexpr int64_t kThreadsPerMultiprocessor = 256;
constexpr int kFewestThreads = 64;

enum class Source { kImage, kMaxGrad };

// What the kernel gets: the sizes of DirectConv in 32 bits, and how the work is cut.
struct DirectParams {
  int64_t batch, items;  // items: tiles of all images
  int in_channels, in_height, in_width;
  int out_channels, out_rows, out_columns;  // of the output in memory
  int kernel_height, kernel_width, padding_height, padding_width;
  ImageSource image;
  MaxGradSource max_grad;
  const float* weight;
  int64_t weight_out_stride, weight_in_stride;
  bool mirrored;
  const float* bias;
  Activation activation;
  float slope;
  BlockPool pool;
  float* output;
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

template <int K>
__device__ inline void load_row(float (&row)[K + 1], const float* x) {
#pragma unroll
  for (int q = 0; q <= K; q += 2) {
    const Vec<float, 2> pair = load_vector<2>(x + q);
    row[q] = pair[0];
    row[q + 1] = pair[1];
  }
}

// One input channel: `x` is the window's first pixel in the tile, `weights` those of tap 0. Two
// pixel rows are held at a time; the lower one is the upper one of the next kernel row.
template <int K, int KT>
__device__ inline void add_channel(Sums<KT>& sums, const float* x, const float* weights,
                                   const DirectParams& p) {
  const int pitch = p.tile.pitch;
  if constexpr (K > 0) {
    float upper[K + 1], lower[K + 1];
    load_row<K>(upper, x);
#pragma unroll(K <= 5 ? K : 1)
    for (int r = 0; r < K; ++r) {
      load_row<K>(lower, x + (r + 1) * pitch);
#pragma unroll
      for (int q = 0; q < K; ++q)
        add_tap<KT>(sums, weights + (r * K + q) * p.weight_pitch, upper[q], upper[q + 1], lower[q],
                    lower[q + 1]);
#pragma unroll
      for (int q = 0; q <= K; ++q) upper[q] = lower[q];
    }
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
template <int K, int KT>
__device__ inline void add_chunk(Sums<KT>& total, const float* x, const float* weights,
                                 int channels, const DirectParams& p) {
  const int taps = p.kernel_height * p.kernel_width;
  for (int first = 0; first < channels; first += p.step) {
    const int last = min(first + p.step, channels);
    Sums<KT> sums;
    clear<KT>(sums);
    for (int c = first; c < last; ++c)
      add_channel<K, KT>(sums, x + c * p.tile.plane(), weights + c * taps * p.weight_pitch, p);
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
                         (first_in + in) * p.weight_in_stride + (p.mirrored ? taps - 1 - tap : tap);
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
  const int top = 2 * place.row - p.padding_height, left = 2 * place.column - p.padding_width;
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

// One window of one output channel.
struct Window {
  int64_t plane;  // n * out_channels + o
  int row;
  int column;
};

__device__ inline void store_pixels(const DirectParams& p, const Window& w, const float (&z)[4]) {
#pragma unroll
  for (int tap = 0; tap < 4; ++tap) {
    const int i = 2 * w.row + tap / 2, j = 2 * w.column + tap % 2;
    if (i < p.out_rows && j < p.out_columns)
      p.output[(w.plane * p.out_rows + i) * p.out_columns + j] = z[tap];
  }
}

__device__ inline void store_pooled(const DirectParams& p, const Window& w, const float (&z)[4]) {
  const int64_t at = (w.plane * p.out_rows + w.row) * p.out_columns + w.column;
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

// The gradient of z from that of the average of activation(z); `y` are the activated values.
__device__ inline void store_mean_grad(const DirectParams& p, const Window& w,
                                       const float (&y)[4]) {
  const int64_t cell = (w.plane * p.cell_rows + w.row) * p.cell_columns + w.column;
  const float grad = __ldg(p.mean_grad + cell) * 0.25f;
  float z[4];
#pragma unroll
  for (int tap = 0; tap < 4; ++tap) z[tap] = activation_grad(grad, y[tap], p.activation, p.slope);
  store_pixels(p, w, z);
}

template <int KT, Source S>
__device__ inline void finish(const DirectParams& p, Sums<KT>& z, int64_t image, int first_out,
                              int row, int column) {
  if constexpr (S == Source::kImage) {
#pragma unroll
    for (int t = 0; t < KT; ++t) {
      const bool exists = p.bias != nullptr && first_out + t < p.out_channels;
      const float bias = exists ? __ldg(p.bias + first_out + t) : 0.0f;
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) z[tap][t] += bias;
    }
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) activate<KT>(z[tap], p.activation, p.slope);
  }
#pragma unroll
  for (int t = 0; t < KT; ++t) {
    if (first_out + t >= p.out_channels) continue;
    const Window window{image * p.out_channels + first_out + t, row, column};
    const float values[4] = {z[0][t], z[1][t], z[2][t], z[3][t]};
    if constexpr (S == Source::kMaxGrad) {
      store_pixels(p, window, values);
    } else if (p.mean_grad != nullptr) {
      store_mean_grad(p, window, values);
    } else if (p.pool == BlockPool::kNone) {
      store_pixels(p, window, values);
    } else {
      store_pooled(p, window, values);
    }
  }
}

// Grid: (tiles, output channels / (groups * KT)). Block: (windows of a tile, groups). K: height and
// width of the kernel, or 0 for any.
template <int K, int KT, Source S>
__global__ void __launch_bounds__(kMaxThreads, 2) conv_block2d_direct_kernel(const DirectParams p) {
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
  const float* const own_pixels =
      pixels + image * p.image_floats() + 2 * row * p.tile.pitch + 2 * column;
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
      add_chunk<K, KT>(total, own_pixels, own_weights, channels, p);
    }
    const int i = place.row + row, j = place.column + column;
    if (place.image + image < p.batch && i < p.cell_rows && j < p.cell_columns)
      finish<KT, S>(p, total, place.image + image, block_out + threadIdx.y * KT, i, j);
  }
}

// --- Choices, on the host ------------------------------------------------------------------------

struct DirectPlan {
  DirectParams params;
  int channels_per_thread;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
};

// Output channels per thread: the fewest sums for channels that do not exist, then the most reuse;
// but where the GPU would have too few threads, as many threads as there can be.
int choose_channels(int64_t windows, int64_t out_channels, const Device& device) {
  int best = 8;
  for (const int kt : {6, 4})
    if (round_up(out_channels, kt) < round_up(out_channels, best)) best = kt;
  const int64_t threads = windows * ceil_div(out_channels, best);
  return threads < kThreadsPerMultiprocessor * device.multiprocessors ? 4 : best;
}

// Even, for pairs of pixels; where it can be, such that the rows of windows of a warp follow each
// other in the banks of shared memory.
int choose_pitch(int columns, int tile_columns) {
  int pitch = columns + columns % 2;
  if (tile_columns % 2 == 0)
    while ((pitch - tile_columns) % 16 != 0) pitch += 2;
  return pitch;
}

// Cuts `size` into pieces of at most `most`, as even as they can be; returns the piece.
int even_pieces(int64_t size, int64_t most) {
  return static_cast<int>(ceil_div(size, ceil_div(size, most)));
}

// Tiles of at most `cells` windows: parts of an image, or several images.
void cut_tiles(DirectParams& p, int cells) {
  p.tile_columns = even_pieces(p.cell_columns, std::min(kMaxTileColumns, cells));
  p.tile_rows = even_pieces(p.cell_rows, std::max(1, cells / p.tile_columns));
  p.tiles_across = static_cast<int>(ceil_div(p.cell_columns, p.tile_columns));
  p.tiles_down = static_cast<int>(ceil_div(p.cell_rows, p.tile_rows));
  p.images = 1;
  if (p.tiles_across == 1 && p.tiles_down == 1)
    p.images = even_pieces(p.batch, std::max(1, cells / (p.tile_rows * p.tile_columns)));
  p.items = ceil_div(p.batch, p.images) * p.tiles_down * p.tiles_across;
}

// Memory of one input channel: its pixels and the weights of the block.
int channel_floats(const DirectParams& p) {
  return p.images * p.tile.plane() + p.kernel_height * p.kernel_width * p.weight_pitch;
}

DirectParams base_params(const DirectConv& c) {
  DirectParams p{};
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  p.batch = c.batch;
  p.in_channels = narrow(c.in_channels);
  p.in_height = narrow(c.in_height);
  p.in_width = narrow(c.in_width);
  p.out_channels = narrow(c.out_channels);
  p.kernel_height = narrow(c.kernel_height);
  p.kernel_width = narrow(c.kernel_width);
  p.padding_height = narrow(c.padding_height);
  p.padding_width = narrow(c.padding_width);
  p.image = {c.input, c.input_strides, p.in_height, p.in_width};
  p.max_grad = {c.grad,         c.pooled,          c.taps, p.in_height / 2,
                p.in_width / 2, c.grad_activation, c.slope};
  p.weight = c.weight;
  p.weight_out_stride = c.weight_out_stride;
  p.weight_in_stride = c.weight_in_stride;
  p.mirrored = c.mirrored;
  p.bias = c.bias;
  p.activation = c.activation;
  p.slope = c.slope;
  p.pool = c.pool;
  p.output = c.output;
  p.offsets = c.offsets;
  p.mean_grad = c.mean_grad;
  // Without pooling a window may reach past the last row or column.
  const int64_t up = c.pool == BlockPool::kNone ? 1 : 0;
  p.cell_rows = narrow((c.out_height + up) / 2);
  p.cell_columns = narrow((c.out_width + up) / 2);
  const bool pixels = c.pool == BlockPool::kNone;
  p.out_rows =
      c.mean_grad != nullptr ? 2 * p.cell_rows : narrow(pixels ? c.out_height : p.cell_rows);
  p.out_columns =
      c.mean_grad != nullptr ? 2 * p.cell_columns : narrow(pixels ? c.out_width : p.cell_columns);
  return p;
}

DirectPlan plan_direct_conv(const DirectConv& c, const Device& device) {
  DirectPlan plan{};
  DirectParams& p = plan.params;
  p = base_params(c);
  const int64_t windows = p.batch * p.cell_rows * p.cell_columns;
  const int kt = plan.channels_per_thread = choose_channels(windows, c.out_channels, device);
  const int64_t wanted = kBlocksPerMultiprocessor * device.multiprocessors;
  int groups = static_cast<int>(std::min<int64_t>(kMaxGroups, ceil_div(c.out_channels, kt)));
  int cells = std::min(128, kMaxThreads / groups);
  cut_tiles(p, cells);
  const auto blocks = [&] { return p.items * ceil_div(c.out_channels, groups * kt); };
  // A small problem is cut smaller, for more multiprocessors to have a part.
  while (blocks() < wanted && cells > 32) cut_tiles(p, cells /= 2);
  while (blocks() < wanted && groups > 1 && cells * groups > kFewestThreads)
    groups = (groups + 1) / 2;

  const int taps = p.kernel_height * p.kernel_width;
  p.tile.rows = 2 * p.tile_rows + p.kernel_height - 1;
  p.tile.columns = 2 * p.tile_columns + p.kernel_width - 1;
  p.tile.pitch = choose_pitch(p.tile.columns, p.tile_columns);
  p.tile.by_rows = FastDivmod(p.tile.rows);
  p.tile.by_columns = FastDivmod(p.tile.columns);
  p.weight_pitch = groups * kt;
  if (p.weight_pitch % 8 == 0) p.weight_pitch += 4;  // fewer bank conflicts while it is filled
  p.chunk = even_pieces(p.in_channels, std::max(1, kSharedFloats / channel_floats(p)));
  p.step = std::max(1, static_cast<int>(kMaxTerms) / taps);
  p.by_taps = FastDivmod(taps);
  p.by_chunk_weights = FastDivmod(static_cast<int64_t>(p.chunk) * taps);

  const int64_t channel_blocks = ceil_div(c.out_channels, groups * kt);
  plan.block = dim3(static_cast<unsigned>(p.images * p.tile_rows * p.tile_columns),
                    static_cast<unsigned>(groups));
  plan.grid = dim3(static_cast<unsigned>(std::min(p.items, std::max<int64_t>(1, 4 * wanted))),
                   static_cast<unsigned>(channel_blocks));
  plan.shared_bytes = sizeof(float) * static_cast<size_t>(p.chunk) * channel_floats(p);
  return plan;
}

template <int K, int KT>
cudaError_t launch_source(const DirectPlan& plan, bool image, cudaStream_t stream) {
  const DirectParams& p = plan.params;
  if (image)
    return FC_LAUNCH((conv_block2d_direct_kernel<K, KT, Source::kImage>), plan.grid, plan.block,
                     plan.shared_bytes, stream, p);
  return FC_LAUNCH((conv_block2d_direct_kernel<K, KT, Source::kMaxGrad>), plan.grid, plan.block,
                   plan.shared_bytes, stream, p);
}

template <int K>
cudaError_t launch_channels(const DirectPlan& plan, bool image, cudaStream_t stream) {
  switch (plan.channels_per_thread) {
    case 4:
      return launch_source<K, 4>(plan, image, stream);
    case 6:
      return launch_source<K, 6>(plan, image, stream);
    default:
      return launch_source<K, 8>(plan, image, stream);
  }
}

}  // namespace

cudaError_t launch_direct_conv(const DirectConv& conv, const Device& device, cudaStream_t stream) {
  if (conv.batch == 0) return cudaSuccess;
  const DirectPlan plan = plan_direct_conv(conv, device);
  const bool image = conv.input != nullptr;
  if (conv.kernel_height == conv.kernel_width) {
    if (conv.kernel_height == 3) return launch_channels<3>(plan, image, stream);
    if (conv.kernel_height == 5) return launch_channels<5>(plan, image, stream);
    if (conv.kernel_height == 7) return launch_channels<7>(plan, image, stream);
  }
  return launch_channels<0>(plan, image, stream);
}

}  // namespace fastconv::cuda
