// SPDX-License-Identifier: MIT
// Layout changes of conv2d_layout.h, in tiles of 32 x 32 through shared memory:
// a warp reads 32 neighbours of whichever dimension is denser in the source -
// pixels or taps against channels - and writes 32 neighbouring channels.
// Elements move as bits; their type does not matter.
#include "cuda/conv2d/conv2d_layout.h"

#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/vector.cuh"
#include "cuda/conv2d/conv2d_tiles.h"

namespace fastconv::cuda {
namespace {

constexpr int kSide = 32;
constexpr int kPasses = 4;
constexpr int kThreads = kSide * kSide / kPasses;
constexpr int kPaddedSide = kSide + 1;  // columns of the tile fall into different banks
constexpr size_t kTile = kSide * kPaddedSide;

struct CopyArgs {
  const void* from;
  Strides4 strides;
  void* to;
  FastDivmod image_divisor;  // by height * width
  FastDivmod row_divisor;    // by width
  FastDivmod group_divisor;  // by padded_channels
  int32_t pixels;
  int32_t channels;         // of a group
  int32_t padded_channels;  // of all groups
  bool pixels_denser;
};

template <typename Bits>
__device__ Bits read_element(const CopyArgs& a, int64_t pixel, int32_t channel) {
  if (pixel >= a.pixels || channel >= a.padded_channels) return 0;
  int32_t c;
  const int32_t group = a.group_divisor.divmod(channel, c);
  if (c >= a.channels) return 0;
  int32_t rest, column;
  const int32_t image = a.image_divisor.divmod(static_cast<int32_t>(pixel), rest);
  const int32_t row = a.row_divisor.divmod(rest, column);
  const int64_t source_channel = static_cast<int64_t>(group) * a.channels + c;
  return static_cast<const Bits*>(
      a.from)[image * a.strides.batch + source_channel * a.strides.channel + row * a.strides.row +
              column * a.strides.column];
}

// Grid: (tiles of pixels, tiles of channels).
template <typename Bits>
__global__ void __launch_bounds__(kThreads) conv2d_copy_pixels_kernel(CopyArgs a) {
  FC_DYNAMIC_SHARED(Bits, tile);  // [pixel][channel]
  const int fast = static_cast<int>(threadIdx.x) % kSide;
  const int slow = static_cast<int>(threadIdx.x) / kSide;
  const int64_t first_pixel = static_cast<int64_t>(blockIdx.x) * kSide;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.y) * kSide;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int line = slow + pass * (kSide / kPasses);
    const int pixel = a.pixels_denser ? fast : line;
    const int channel = a.pixels_denser ? line : fast;
    tile[pixel * kPaddedSide + channel] =
        read_element<Bits>(a, first_pixel + pixel, first_channel + channel);
  }
  __syncthreads();
  const int32_t channel = first_channel + fast;
  if (channel >= a.padded_channels) return;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int line = slow + pass * (kSide / kPasses);
    const int64_t pixel = first_pixel + line;
    if (pixel < a.pixels)
      static_cast<Bits*>(a.to)[pixel * a.padded_channels + channel] =
          tile[line * kPaddedSide + fast];
  }
}

// One element of the packed weights of a phase: `line` counts (row, tap).
template <typename Bits>
__device__ Bits read_weight(const WeightPack& p, const PhaseTaps& phase, const Bits* from,
                            int64_t line, int32_t channel) {
  const int32_t taps = phase.rows * phase.columns;
  const int64_t row = line / taps;
  if (row >= p.rows || channel >= p.channels) return 0;
  const int32_t tap = static_cast<int32_t>(line % taps);
  const int32_t r = phase.first_row + tap / phase.columns * p.tap_row_step;
  const int32_t q = phase.first_column + tap % phase.columns * p.tap_column_step;
  return from[row * p.row_stride + channel * p.channel_stride + r * p.tap_row_stride +
              q * p.tap_column_stride];
}

// Grid: (tiles of lines, tiles of channels, groups * phases). A line is one tap
// of one row; lines are neighbours in a contiguous weight, channels in a
// channels-last one.
template <typename Bits>
__global__ void __launch_bounds__(kThreads) conv2d_pack_weights_kernel(const WeightPack p) {
  FC_DYNAMIC_SHARED(Bits, tile);  // [line][channel]
  constexpr int kPer = kPer128<Bits>;
  const int group = static_cast<int>(blockIdx.z) % p.groups;
  const PhaseTaps& phase = p.phases[static_cast<int>(blockIdx.z) / p.groups];
  const int64_t lines = static_cast<int64_t>(p.rows) * phase.rows * phase.columns;
  const int64_t first_line = static_cast<int64_t>(blockIdx.x) * kSide;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.y) * kSide;
  if (first_line >= lines) return;  // the grid is that of the phase with the most taps
  const int fast = static_cast<int>(threadIdx.x) % kSide;
  const int slow = static_cast<int>(threadIdx.x) / kSide;
  const Bits* from = static_cast<const Bits*>(p.from) + group * p.group_stride;
  const bool channels_denser = p.channel_stride == 1;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int other = slow + pass * (kSide / kPasses);
    const int line = channels_denser ? other : fast;
    const int channel = channels_denser ? fast : other;
    tile[line * kPaddedSide + channel] =
        read_weight<Bits>(p, phase, from, first_line + line, first_channel + channel);
  }
  __syncthreads();
  const int32_t channel = first_channel + fast;
  if (channel >= p.padded_channels) return;
  Bits* to = static_cast<Bits*>(p.to) + (group * p.group_vectors + phase.vectors) * kPer;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int line = slow + pass * (kSide / kPasses);
    if (first_line + line < lines)
      to[(first_line + line) * p.padded_channels + channel] = tile[line * kPaddedSide + fast];
  }
}

}  // namespace

cudaError_t launch_conv2d_copy_pixels(const PixelCopy& copy, cudaStream_t stream) {
  const CopyArgs args{copy.from,
                      copy.strides,
                      copy.to,
                      FastDivmod(copy.height * copy.width),
                      FastDivmod(copy.width),
                      FastDivmod(copy.padded_channels),
                      static_cast<int32_t>(copy.images * copy.height * copy.width),
                      static_cast<int32_t>(copy.channels),
                      static_cast<int32_t>(copy.groups * copy.padded_channels),
                      copy.strides.column < copy.strides.channel};
  const dim3 grid(static_cast<unsigned>(ceil_div(args.pixels, kSide)),
                  static_cast<unsigned>(ceil_div(args.padded_channels, kSide)));
  if (copy.element_bytes == 2)
    return FC_LAUNCH(conv2d_copy_pixels_kernel<uint16_t>, grid, kThreads, 2 * kTile, stream, args);
  return FC_LAUNCH(conv2d_copy_pixels_kernel<uint32_t>, grid, kThreads, 4 * kTile, stream, args);
}

cudaError_t launch_conv2d_pack_weights(const WeightPack& pack, cudaStream_t stream) {
  int64_t most_taps = 0;
  for (int i = 0; i < pack.phase_count; ++i) {
    const int64_t taps = static_cast<int64_t>(pack.phases[i].rows) * pack.phases[i].columns;
    most_taps = taps > most_taps ? taps : most_taps;
  }
  if (most_taps == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(pack.rows * most_taps, kSide)),
                  static_cast<unsigned>(ceil_div(pack.padded_channels, kSide)),
                  static_cast<unsigned>(pack.groups * pack.phase_count));
  if (pack.element_bytes == 2)
    return FC_LAUNCH(conv2d_pack_weights_kernel<uint16_t>, grid, kThreads, 2 * kTile, stream, pack);
  return FC_LAUNCH(conv2d_pack_weights_kernel<uint32_t>, grid, kThreads, 4 * kTile, stream, pack);
}

}  // namespace fastconv::cuda
