// SPDX-License-Identifier: MIT
// Layout changes of conv2d_layout.h. Pixels are copied in tiles of 32 pixels x 32 channels through
// shared memory: a warp reads 32 neighbours of whichever dimension is denser in the source and
// writes 32 neighbouring channels. Elements move as bits; their type does not matter.
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

// Grid: (elements of a group of one phase, groups * phases).
template <typename Bits>
__global__ void __launch_bounds__(kThreads) conv2d_pack_weights_kernel(const WeightPack p) {
  constexpr int kPer = kPer128<Bits>;
  const int group = static_cast<int>(blockIdx.y) % p.groups;
  const PhaseTaps& phase = p.phases[static_cast<int>(blockIdx.y) / p.groups];
  const int64_t taps = static_cast<int64_t>(phase.rows) * phase.columns;
  const int64_t elements = p.rows * taps * p.padded_channels;
  Bits* to = static_cast<Bits*>(p.to) + (group * p.group_vectors + phase.vectors) * kPer;
  const Bits* from = static_cast<const Bits*>(p.from) + group * p.group_stride;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < elements;
       index += step) {
    const int64_t line = index / p.padded_channels;
    const int32_t c = static_cast<int32_t>(index % p.padded_channels);
    const int64_t row = line / taps;
    const int32_t tap = static_cast<int32_t>(line % taps);
    const int32_t r = phase.first_row + tap / phase.columns * p.tap_row_step;
    const int32_t q = phase.first_column + tap % phase.columns * p.tap_column_step;
    to[index] = c < p.channels ? from[row * p.row_stride + c * p.channel_stride +
                                      r * p.tap_row_stride + q * p.tap_column_stride]
                               : Bits(0);
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
  constexpr size_t kTile = kSide * kPaddedSide;
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
  const dim3 grid(grid_for(pack.rows * most_taps * pack.padded_channels, kThreads),
                  static_cast<unsigned>(pack.groups * pack.phase_count));
  if (pack.element_bytes == 2)
    return FC_LAUNCH(conv2d_pack_weights_kernel<uint16_t>, grid, kThreads, 0, stream, pack);
  return FC_LAUNCH(conv2d_pack_weights_kernel<uint32_t>, grid, kThreads, 0, stream, pack);
}

}  // namespace fastconv::cuda
