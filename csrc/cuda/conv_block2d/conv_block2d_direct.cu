// SPDX-License-Identifier: MIT
// How the direct kernel cuts its work, and its launch.
#include <algorithm>

#include "common/checked.h"
#include "common/summation.h"
#include "cuda/conv_block2d/conv_block2d_direct.cuh"
#include "cuda/conv_block2d/conv_block2d_direct.h"

namespace fastconv::cuda {
namespace {

constexpr int kMaxTileColumns = 16;
constexpr int kMaxGroups = 4;
constexpr int kSharedFloats = 10 * 1024;  // 40 KB: two blocks or more per multiprocessor
constexpr int64_t kBlocksPerMultiprocessor = 4;
constexpr int64_t kThreadsPerMultiprocessor = 256;
constexpr int kFewestThreads = 64;

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
int choose_pitch(const DirectParams& p) {
  int pitch = p.tile.columns + p.tile.columns % 2;
  if (p.tile_columns % 2 == 0 && p.stride_height == p.stride_width)
    while ((pitch - p.tile_columns) * p.stride_width % 16 != 0) pitch += 2;
  return pitch;
}

// Cuts `size` into pieces of at most `most`, as even as they can be; returns the piece.
int even_pieces(int64_t size, int64_t most) {
  return static_cast<int>(ceil_div(size, ceil_div(size, most)));
}

// Tiles of at most `cells` windows: parts of an image, or several images; and their pixels.
void cut_tiles(DirectParams& p, int cells) {
  p.tile_columns = even_pieces(p.cell_columns, std::min(kMaxTileColumns, cells));
  p.tile_rows = even_pieces(p.cell_rows, std::max(1, cells / p.tile_columns));
  p.tiles_across = static_cast<int>(ceil_div(p.cell_columns, p.tile_columns));
  p.tiles_down = static_cast<int>(ceil_div(p.cell_rows, p.tile_rows));
  p.images = 1;
  if (p.tiles_across == 1 && p.tiles_down == 1)
    p.images = even_pieces(p.batch, std::max(1, cells / (p.tile_rows * p.tile_columns)));
  p.items = ceil_div(p.batch, p.images) * p.tiles_down * p.tiles_across;
  p.tile.rows = (2 * p.tile_rows - 1) * p.stride_height + p.kernel_height;
  p.tile.columns = (2 * p.tile_columns - 1) * p.stride_width + p.kernel_width;
  p.tile.pitch = choose_pitch(p);
  p.tile.by_rows = FastDivmod(p.tile.rows);
  p.tile.by_columns = FastDivmod(p.tile.columns);
}

// Memory of one input channel: its pixels and the weights of the block.
int channel_floats(const DirectParams& p) {
  return p.images * p.tile.plane() + p.kernel_height * p.kernel_width * p.weight_pitch;
}

// Whether a pixel's channels lie next to each other, in whole vectors.
bool stores_vectors(const DirectConv& c) {
  const Strides4& s = c.output_strides;
  return c.pool == BlockPool::kNone && s.channel == 1 && c.out_channels % 4 == 0 &&
         s.batch % 4 == 0 && s.row % 4 == 0 && s.column % 4 == 0 && aligned16(c.output);
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
  p.stride_height = narrow(c.stride_height);
  p.stride_width = narrow(c.stride_width);
  p.image = {c.input, c.input_strides, p.in_height, p.in_width};
  p.max_grad = {c.grad,         c.pooled,          c.taps, p.in_height / 2,
                p.in_width / 2, c.grad_activation, c.slope};
  p.weight = c.weight;
  p.weight_out_stride = c.weight_out_stride;
  p.weight_in_stride = c.weight_in_stride;
  p.weight_tap_stride = c.weight_tap_stride;
  p.mirrored = c.mirrored;
  p.bias = c.bias;
  p.activation = c.activation;
  p.slope = c.slope;
  p.pool = c.pool;
  p.output = c.output;
  p.output_strides = c.output_strides;
  p.vector_channels = stores_vectors(c);
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
  int cells = std::min(128, kDirectThreads / groups);
  cut_tiles(p, cells);
  const auto blocks = [&] { return p.items * ceil_div(c.out_channels, groups * kt); };
  // A small problem is cut smaller, for more multiprocessors to have a part.
  while (blocks() < wanted && cells > 32) cut_tiles(p, cells /= 2);
  while (blocks() < wanted && groups > 1 && cells * groups > kFewestThreads)
    groups = (groups + 1) / 2;

  const int taps = p.kernel_height * p.kernel_width;
  p.weight_pitch = groups * kt;
  if (p.weight_pitch % 8 == 0) p.weight_pitch += 4;  // fewer bank conflicts while it is filled
  while (channel_floats(p) > kSharedFloats && cells > 1) cut_tiles(p, cells /= 2);
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

template <int K, int Step, int KT>
cudaError_t launch_source(const DirectPlan& plan, cudaStream_t stream) {
  const DirectParams& p = plan.params;
  if constexpr (Step == 1)
    if (p.image.data == nullptr)
      return FC_LAUNCH((conv_block2d_direct_kernel<K, Step, KT, Source::kMaxGrad>), plan.grid,
                       plan.block, plan.shared_bytes, stream, p);
  return FC_LAUNCH((conv_block2d_direct_kernel<K, Step, KT, Source::kImage>), plan.grid, plan.block,
                   plan.shared_bytes, stream, p);
}

template <int K, int Step>
cudaError_t launch_channels(const DirectPlan& plan, cudaStream_t stream) {
  switch (plan.channels_per_thread) {
    case 4:
      return launch_source<K, Step, 4>(plan, stream);
    case 6:
      return launch_source<K, Step, 6>(plan, stream);
    default:
      return launch_source<K, Step, 8>(plan, stream);
  }
}

template <int Step>
cudaError_t launch_kernel_size(const DirectPlan& plan, cudaStream_t stream) {
  const DirectParams& p = plan.params;
  if (p.kernel_height == p.kernel_width) {
    if (p.kernel_height == 3) return launch_channels<3, Step>(plan, stream);
    if (p.kernel_height == 5) return launch_channels<5, Step>(plan, stream);
    if (p.kernel_height == 7) return launch_channels<7, Step>(plan, stream);
  }
  return launch_channels<0, Step == 1 ? 1 : kAnyStep>(plan, stream);
}

}  // namespace

cudaError_t launch_direct_conv(const DirectConv& conv, const Device& device, cudaStream_t stream) {
  if (conv.batch == 0) return cudaSuccess;
  const DirectPlan plan = plan_direct_conv(conv, device);
  const int64_t step = conv.stride_height == conv.stride_width ? conv.stride_width : kAnyStep;
  if (step == 1) return launch_kernel_size<1>(plan, stream);
  if (step == 2) return launch_kernel_size<2>(plan, stream);
  return launch_channels<0, kAnyStep>(plan, stream);
}

}  // namespace fastconv::cuda
