// SPDX-License-Identifier: MIT
// Weight gradients by dot products along the pixels of a strip, tile by tile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/checked.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/conv2d_prefetch.h"
#include "cpu/conv2d/conv2d_ukernels.h"

namespace fastconv::cpu {

// How many tiles share the taps and the output channels, evenly.
struct DotBlocks {
  int64_t taps;
  int64_t channels;
  double cycles;  // per vector of pixels
};

// Two multiply-adds a cycle, and one load: most straddle two cache lines.
inline DotBlocks choose_dot_blocks(const DotFamily& family, int64_t taps, int64_t channels) {
  DotBlocks best{1, 1, std::numeric_limits<double>::infinity()};
  for (int64_t wide = 1; wide <= std::min(family.max_channels, channels); ++wide) {
    const int64_t channel_blocks = ceil_div(channels, wide);
    const int64_t most = ceil_div(channels, channel_blocks);
    const int64_t tap_blocks = ceil_div(taps, std::min(family.max_taps, family.max_sums / most));
    const double t = static_cast<double>(taps) / static_cast<double>(tap_blocks);
    const double c = static_cast<double>(channels) / static_cast<double>(channel_blocks);
    const double cycles =
        std::max(0.5 * t * c, t + c) * static_cast<double>(tap_blocks * channel_blocks);
    if (cycles < best.cycles) best = {tap_blocks, channel_blocks, cycles};
  }
  return best;
}

// Adds the products of one strip to strip.sums[channel][tap][lanes], and to strip.bias[channel]
// [lanes] unless that is nullptr. tap_start(tap) is where a tap starts; strip.taps is not read.
// What `prefetch` holds, unless it is nullptr, is brought near meanwhile.
template <typename TapStart>
void add_dots(const DotFamily& family, int64_t lanes, const DotTile& strip, int64_t taps,
              int64_t channels, const TapStart& tap_start, Prefetch* prefetch = nullptr) {
  const int64_t bias_taps = strip.bias == nullptr ? 0 : 1;  // the bias takes the place of one
  const DotBlocks blocks = choose_dot_blocks(family, taps + bias_taps, channels);
  if (prefetch != nullptr) prefetch->start(blocks.channels * blocks.taps);
  DotTile tile = strip;
  tile.sum_channel = taps * lanes;
  for (int64_t c = 0; c < blocks.channels; ++c) {
    const int64_t o = channels * c / blocks.channels;
    const int64_t count = channels * (c + 1) / blocks.channels - o;
    tile.grad = strip.grad + o * strip.grad_channel;
    int64_t first = 0;
    for (int64_t t = 0; t < blocks.taps; ++t) {
      // Rounded up, so that the first block has a tap beside the bias.
      const int64_t end = ceil_div((taps + bias_taps) * (t + 1), blocks.taps) - bias_taps;
      for (int64_t tap = first; tap < end; ++tap) tile.taps[tap - first] = tap_start(tap);
      tile.sums = strip.sums + (o * taps + first) * lanes;
      tile.bias = t == 0 && bias_taps > 0 ? strip.bias + o * lanes : nullptr;
      if (prefetch != nullptr) prefetch->step();
      family.tiles[(count - 1) * family.max_taps + end - first - 1](tile);
      first = end;
    }
  }
}

// What all slots have added up: [out_channels][in_channels * taps][lanes], then, where it is asked
// for, the bias [out_channels][lanes].
struct LaneSums {
  const float* first;
  int64_t slot_floats;  // from one slot's sums to the next
  int64_t slots;
};

// Adds the lanes of all sums, in slot order, and writes both gradients.
inline void store_lane_sums(const Conv2dKernels& kernels, int64_t lanes,
                            const Conv2dGradWeight& call, const LaneSums& sums) {
  const int64_t channels = call.shape.out_channels;
  const int64_t weights = channels * call.shape.group_in_channels() * call.shape.taps();
  std::fill_n(call.grad_weight, weights, 0.0f);
  if (call.grad_bias != nullptr) std::fill_n(call.grad_bias, channels, 0.0f);
  for (int64_t slot = 0; slot < sums.slots; ++slot) {
    const float* part = sums.first + slot * sums.slot_floats;
    kernels.add_lanes(part, weights, call.grad_weight);
    if (call.grad_bias != nullptr)
      kernels.add_lanes(part + weights * lanes, channels, call.grad_bias);
  }
}

}  // namespace fastconv::cpu
