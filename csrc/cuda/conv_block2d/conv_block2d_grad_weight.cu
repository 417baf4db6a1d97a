// SPDX-License-Identifier: MIT
// Weight and bias gradients of a convolution from a gradient that is mostly zeros:
//
//   grad_weight[o, c, r, q] = sum over n and the pixels (i, j) of channel o that have a gradient g:
//                             g * x[n, c, i * stride + r - pad, j * stride + q - pad]
//   grad_bias[o]            = sum of g
//
// Behind 2 x 2 max pooling one pixel of four has a gradient, behind ReLU fewer; only those are
// multiplied. Where the gradient is a given one, zeros are multiplied too: they may meet NaN. A
// warp owns one output channel and W x 32 of its weights, W per lane in registers. It reads 32
// windows at once, a ballot finds those to add, and each of those is passed to all lanes by
// shuffles; the pixels come from a tile in shared memory, whose pitch spreads the taps over the
// banks. Blocks work on slices of the batch and write partial sums, which a second kernel adds up
// in a fixed order. Sums longer than kMaxTerms are made of parts, for float32's sake.
#include <algorithm>

#include "common/checked.h"
#include "common/summation.h"
#include "cuda/common/launch.h"
#include "cuda/conv_block2d/conv_block2d_grad_weight.h"
#include "cuda/conv_block2d/conv_block2d_tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 8;
constexpr int kMaxLaneWeights = 8;
constexpr int kMaxTileColumns = 16;
constexpr int kSharedFloats = 8 * 1024;  // 32 KB: three blocks per multiprocessor on all GPUs
constexpr int64_t kBlocksPerMultiprocessor = 2;
constexpr int64_t kMaxSlices = 256;

struct GradWeightParams {
  int64_t batch, items, slices;
  int in_channels, out_channels;
  int taps, kernel_width;
  int weights;  // of one output channel
  ImageSource image;
  MaxGradSource source;  // of dense gradients: cells are pixels, without output and offsets
  bool multiplies_zeros;
  int padding_height, padding_width;
  int stride_height, stride_width;  // 1 behind max pooling
  int cell_rows, cell_columns;
  int tile_rows, tile_columns;
  int tiles_down, tiles_across;
  FastDivmod by_tile_columns;
  TileLayout tile;
  float* partials;       // [slices][out_channels][weights]
  float* bias_partials;  // [slices][out_channels]
};

// What one lane knows of a window, or that it has nothing to add.
struct Entry {
  float grad;
  int place;  // of the winning pixel in the tile
  bool adds;
};

// `at` numbers the windows of the tile at (row, column) of the plane that `plane` begins.
template <bool Sparse>
__device__ inline Entry load_entry(const GradWeightParams& p, int64_t plane, int at, int row,
                                   int column) {
  int j;
  const int i = p.by_tile_columns.divmod(at, j);
  Entry entry{0.0f, 0, false};
  if (i < p.tile_rows && row + i < p.cell_rows && column + j < p.cell_columns) {
    const int64_t from = plane + static_cast<int64_t>(row + i) * p.cell_columns + column + j;
    if constexpr (Sparse) {
      const int tap = __ldg(p.source.offsets + from);
      entry.grad = p.source.value(from);
      entry.place = (2 * i + tap / 2) * p.tile.pitch + 2 * j + tap % 2;
    } else {
      entry.grad = __ldg(p.source.grad + from);
      entry.place = i * p.stride_height * p.tile.pitch + j * p.stride_width;
    }
    entry.adds = p.multiplies_zeros || entry.grad != 0.0f;
  }
  return entry;
}

// Adds the entries of 32 lanes to each lane's sums.
template <int W>
__device__ inline void add_entries(const Entry& entry, const float* pixels, const int (&places)[W],
                                   float (&sums)[W]) {
  unsigned lanes = __ballot_sync(kAllLanes, entry.adds);
  while (lanes != 0) {
    const int lane = __ffs(static_cast<int>(lanes)) - 1;
    lanes &= lanes - 1;
    const float grad = __shfl_sync(kAllLanes, entry.grad, lane);
    const float* pixel = pixels + __shfl_sync(kAllLanes, entry.place, lane);
#pragma unroll
    for (int w = 0; w < W; ++w) sums[w] = fmaf(grad, pixel[places[w]], sums[w]);
  }
}

// Grid: (slices, output channels / warps, weights / (32 W)). Block: (32, warps).
template <int W, bool Sparse>
__global__ void __launch_bounds__(kWarp* kMaxWarps, 2)
    conv_block2d_grad_weight_kernel(const GradWeightParams p) {
  FC_DYNAMIC_SHARED(float, pixels);
  const int lane = threadIdx.x;
  const int out = blockIdx.y * blockDim.y + threadIdx.y;
  const int thread = threadIdx.y * kWarp + lane, threads = blockDim.y * kWarp;
  // The input channels of this block's weights.
  const int first_weight = blockIdx.z * kWarp * W;
  const int last_weight = min(first_weight + kWarp * W, p.weights) - 1;
  const int first_channel = first_weight / p.taps;
  const int channels = last_weight / p.taps - first_channel + 1;

  int places[W];
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const int weight = min(first_weight + w * kWarp + lane, last_weight);
    const int channel = weight / p.taps, tap = weight - channel * p.taps;
    const int r = tap / p.kernel_width, q = tap - r * p.kernel_width;
    places[w] = (channel - first_channel) * p.tile.plane() + r * p.tile.pitch + q;
  }
  float total[W], total_bias = 0.0f;
#pragma unroll
  for (int w = 0; w < W; ++w) total[w] = 0.0f;

  const int tiles = p.tiles_down * p.tiles_across, cells = p.tile_rows * p.tile_columns;
  const int64_t end = p.items * (blockIdx.x + 1) / p.slices;
  for (int64_t item = p.items * blockIdx.x / p.slices; item < end; ++item) {
    const int64_t image = item / tiles;
    const int within = static_cast<int>(item - image * tiles), down = within / p.tiles_across;
    const int row = down * p.tile_rows, column = (within - down * p.tiles_across) * p.tile_columns;
    ImageSource source = p.image;
    source.data += image * source.strides.batch + first_channel * source.strides.channel;
    __syncthreads();  // the last tile is no longer read
    const int top = row * (Sparse ? 2 : p.stride_height) - p.padding_height;
    const int left = column * (Sparse ? 2 : p.stride_width) - p.padding_width;
    load_tile(p.tile, source, channels, top, left, pixels, thread, threads);
    __syncthreads();
    if (out >= p.out_channels) continue;
    const int64_t plane =
        (image * p.out_channels + out) * p.cell_rows * static_cast<int64_t>(p.cell_columns);
    for (int first = 0; first < cells; first += kMaxTerms) {
      float sums[W];
#pragma unroll
      for (int w = 0; w < W; ++w) sums[w] = 0.0f;
#pragma unroll 1
      for (int at = first; at < first + kMaxTerms && at < cells; at += kWarp) {
        const Entry entry = load_entry<Sparse>(p, plane, at + lane, row, column);
        total_bias += entry.grad;
        add_entries<W>(entry, pixels, places, sums);
      }
#pragma unroll
      for (int w = 0; w < W; ++w) total[w] += sums[w];
    }
  }
  if (out >= p.out_channels) return;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * p.out_channels + out;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const int weight = first_weight + w * kWarp + lane;
    if (weight <= last_weight) p.partials[slot * p.weights + weight] = total[w];
  }
  if (blockIdx.z != 0) return;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2)
    total_bias += __shfl_xor_sync(kAllLanes, total_bias, step);
  if (lane == 0) p.bias_partials[slot] = total_bias;
}

// sums[i] = partials[0][i] + partials[1][i] + ... in a fixed order. Block: (32 sums, 8 parts).
__global__ void __launch_bounds__(256)
    conv_block2d_add_partials_kernel(const float* partials, int64_t slices, int64_t count,
                                     float* sums) {
  FC_DYNAMIC_SHARED(float, parts);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  float part = 0.0f;
  if (at < count)
    for (int64_t slice = threadIdx.y; slice < slices; slice += blockDim.y)
      part += __ldg(partials + slice * count + at);
  parts[threadIdx.y * kWarp + threadIdx.x] = part;
  __syncthreads();
  if (threadIdx.y != 0 || at >= count) return;
  for (unsigned i = 1; i < blockDim.y; ++i) part += parts[i * kWarp + threadIdx.x];
  sums[at] = part;
}

// --- Choices, on the host ------------------------------------------------------------------------

struct GradWeightPlan {
  GradWeightParams params;
  int lane_weights;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
};

// How often the fullest bank is asked for when the lanes read their first weight.
int bank_conflicts(const GradWeightParams& p, int pitch) {
  int asked[kWarp] = {}, most = 0;
  for (int lane = 0; lane < std::min(kWarp, p.weights); ++lane) {
    const int tap = lane % p.taps;
    const int place =
        lane / p.taps * p.tile.rows * pitch + tap / p.kernel_width * pitch + tap % p.kernel_width;
    most = std::max(most, ++asked[place % kWarp]);
  }
  return most;
}

int choose_pitch(const GradWeightParams& p) {
  int best = p.tile.columns, fewest = kWarp + 1;
  for (int pitch = p.tile.columns; pitch < p.tile.columns + 16 && fewest > 1; ++pitch) {
    const int conflicts = bank_conflicts(p, pitch);
    if (conflicts < fewest) {
      fewest = conflicts;
      best = pitch;
    }
  }
  return best;
}

int even_pieces(int64_t size, int64_t most) {
  return static_cast<int>(ceil_div(size, ceil_div(size, most)));
}

// Tiles as large as the memory holds, for few loads of borders.
void cut_tiles(GradWeightParams& p, int channels, int step, int kernel_height) {
  p.tile_columns = even_pieces(p.cell_columns, kMaxTileColumns);
  p.tile_rows = p.cell_rows;
  for (;;) {
    p.tile.rows = (step * p.tile_rows - 1) * p.stride_height + kernel_height;
    p.tile.columns = (step * p.tile_columns - 1) * p.stride_width + p.kernel_width;
    p.tile.pitch = choose_pitch(p);
    const int64_t floats = static_cast<int64_t>(channels) * p.tile.rows * p.tile.pitch;
    if (floats <= kSharedFloats || (p.tile_rows == 1 && p.tile_columns == 1)) break;
    if (p.tile_rows > 1) {
      p.tile_rows = even_pieces(p.cell_rows, std::max(1, p.tile_rows / 2));
    } else {
      p.tile_columns = (p.tile_columns + 1) / 2;
    }
  }
  p.tile.by_rows = FastDivmod(p.tile.rows);
  p.tile.by_columns = FastDivmod(p.tile.columns);
  p.by_tile_columns = FastDivmod(p.tile_columns);
  p.tiles_down = static_cast<int>(ceil_div(p.cell_rows, p.tile_rows));
  p.tiles_across = static_cast<int>(ceil_div(p.cell_columns, p.tile_columns));
  p.items = p.batch * p.tiles_down * p.tiles_across;
}

GradWeightPlan plan_grad_weight(const BlockGradWeight& c, const Device& device) {
  GradWeightPlan plan{};
  GradWeightParams& p = plan.params;
  const Conv2dShape& s = c.conv;
  const bool sparse = c.taps != nullptr;
  const int step = sparse ? 2 : 1;
  p.batch = s.batch;
  p.in_channels = static_cast<int>(s.in_channels);
  p.out_channels = static_cast<int>(s.out_channels);
  p.taps = static_cast<int>(s.taps());
  p.kernel_width = static_cast<int>(s.kernel_width);
  p.weights = p.in_channels * p.taps;
  p.image = {c.input, c.input_strides, static_cast<int>(s.in_height), static_cast<int>(s.in_width)};
  p.cell_rows = static_cast<int>(c.grad_height / step);
  p.cell_columns = static_cast<int>(c.grad_width / step);
  p.source = {c.grad, c.pooled, c.taps, p.cell_rows, p.cell_columns, c.activation, c.slope};
  p.multiplies_zeros = c.multiplies_zeros;
  p.padding_height = static_cast<int>(s.padding_height);
  p.padding_width = static_cast<int>(s.padding_width);
  p.stride_height = static_cast<int>(s.stride_height);
  p.stride_width = static_cast<int>(s.stride_width);

  const int64_t chunks = ceil_div(p.weights, kWarp * kMaxLaneWeights);
  const int w = plan.lane_weights = static_cast<int>(ceil_div(p.weights, kWarp * chunks));
  const int channels = std::min(p.in_channels, (kWarp * w - 1 + p.taps - 1) / p.taps + 1);
  cut_tiles(p, channels, step, static_cast<int>(s.kernel_height));

  const int warps = std::min(kMaxWarps, p.out_channels);
  const int64_t channel_blocks = ceil_div(p.out_channels, warps);
  const int64_t weight_blocks = ceil_div(p.weights, kWarp * w);
  const int64_t wanted = kBlocksPerMultiprocessor * device.multiprocessors;
  p.slices = std::clamp(ceil_div(wanted, channel_blocks * weight_blocks), int64_t{1}, kMaxSlices);
  p.slices = std::min(p.slices, p.items);
  p.partials = c.partials;
  p.bias_partials =
      c.partials == nullptr ? nullptr : c.partials + p.slices * p.out_channels * p.weights;
  plan.grid = dim3(static_cast<unsigned>(p.slices), static_cast<unsigned>(channel_blocks),
                   static_cast<unsigned>(weight_blocks));
  plan.block = dim3(kWarp, static_cast<unsigned>(warps));
  plan.shared_bytes = sizeof(float) * static_cast<size_t>(channels) * p.tile.plane();
  return plan;
}

template <int W, bool Sparse>
cudaError_t launch_as(const GradWeightPlan& plan, cudaStream_t stream) {
  return FC_LAUNCH((conv_block2d_grad_weight_kernel<W, Sparse>), plan.grid, plan.block,
                   plan.shared_bytes, stream, plan.params);
}

template <bool Sparse>
cudaError_t launch_lane_weights(const GradWeightPlan& plan, cudaStream_t stream) {
  switch (plan.lane_weights) {
    case 1:
      return launch_as<1, Sparse>(plan, stream);
    case 2:
      return launch_as<2, Sparse>(plan, stream);
    case 3:
      return launch_as<3, Sparse>(plan, stream);
    case 4:
      return launch_as<4, Sparse>(plan, stream);
    case 5:
      return launch_as<5, Sparse>(plan, stream);
    case 6:
      return launch_as<6, Sparse>(plan, stream);
    case 7:
      return launch_as<7, Sparse>(plan, stream);
    default:
      return launch_as<8, Sparse>(plan, stream);
  }
}

cudaError_t add_partials(const float* partials, int64_t slices, int64_t count, float* sums,
                         cudaStream_t stream) {
  if (sums == nullptr) return cudaSuccess;
  const dim3 block(kWarp, static_cast<unsigned>(std::min<int64_t>(8, slices)));
  return FC_LAUNCH(conv_block2d_add_partials_kernel, dim3(blocks_for(count, kWarp)), block,
                   sizeof(float) * kWarp * block.y, stream, partials, slices, count, sums);
}

}  // namespace

int64_t block_grad_weight_partials(const BlockGradWeight& call, const Device& device) {
  if (call.conv.batch == 0) return 0;
  const GradWeightParams p = plan_grad_weight(call, device).params;
  return p.slices * p.out_channels * (p.weights + int64_t{1});
}

cudaError_t launch_block_grad_weight(const BlockGradWeight& call, const Device& device,
                                     cudaStream_t stream) {
  if (call.conv.batch == 0) return cudaSuccess;
  const GradWeightPlan plan = plan_grad_weight(call, device);
  const GradWeightParams& p = plan.params;
  cudaError_t status = call.taps != nullptr ? launch_lane_weights<true>(plan, stream)
                                            : launch_lane_weights<false>(plan, stream);
  if (status != cudaSuccess) return status;
  const int64_t weights = static_cast<int64_t>(p.out_channels) * p.weights;
  status = add_partials(p.partials, p.slices, weights, call.grad_weight, stream);
  if (status != cudaSuccess) return status;
  return add_partials(p.bias_partials, p.slices, p.out_channels, call.grad_bias, stream);
}

}  // namespace fastconv::cuda
