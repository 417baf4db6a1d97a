// SPDX-License-Identifier: MIT
// What the blocked forms of the weight gradient share: how they split their work, and how sums
// become a gradient. A unit is a block of the sums over one slice of the
// pixels. Only the algorithms of conv2d_grad_weight.h include this.
#pragma once

#include <cstdint>

#include <numeric>
#include <vector>

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {

// Input channels [first, first + count) of one group.
struct ChannelPart {
  int64_t group;
  int64_t first;
  int64_t count;
};

// Writes sums[tap][channel][pitch] of all output channels of the group to grad_weight.
inline void store_weight_sums(const Conv2dKernels& kernels, const Conv2dGradWeight& call,
                              const ChannelPart& part, const float* sums, int64_t pitch) {
  const Conv2dShape& s = call.shape;
  const int64_t taps = s.taps();
  const int64_t out_stride = s.group_in_channels() * taps;
  float* target = call.grad_weight + part.group * s.group_out_channels() * out_stride;
  std::vector<int64_t> rows(part.count * taps);
  if (call.weight_channels_last) {
    std::iota(rows.begin(), rows.end(), int64_t{0});
    for (int64_t tap = 0; tap < taps; ++tap)
      kernels.unpack_columns({s.group_out_channels(), part.count, sums, pitch,
                              rows.data() + tap * part.count,
                              target + tap * s.group_in_channels() + part.first, out_stride});
    return;
  }
  for (int64_t c = 0; c < part.count; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) rows[c * taps + tap] = tap * part.count + c;
  kernels.unpack_columns({s.group_out_channels(), part.count * taps, sums, pitch, rows.data(),
                          target + part.first * taps, out_stride});
}

struct WeightUnits {
  int64_t count;   // all units; the `slices` of one block are neighbours
  int64_t slices;  // of the pixels, whose sums are added at the end
  int64_t slots;   // units that run in parallel
  // Pieces of memory: with slices every unit keeps its sums until all are added; without, a slot
  // reuses its piece.
  int64_t pieces() const { return slices > 1 ? count : slots; }
};

// make_block(block, piece) returns the worker on one block of the sums in one piece of memory; it
// has accumulate(slice), add(another worker on the same block) and store().
template <typename MakeBlock>
void run_weight_units(const WeightUnits& units, const MakeBlock& make_block) {
  const int64_t slices = units.slices;
  parallel_for(units.slots, [&](int64_t slot) {
    const int64_t end = units.count * (slot + 1) / units.slots;
    for (int64_t u = units.count * slot / units.slots; u < end; ++u) {
      auto block = make_block(u / slices, slices > 1 ? u : slot);
      block.accumulate(u % slices);
      if (slices == 1) block.store();
    }
  });
  if (slices == 1) return;
  for (int64_t u = 0; u < units.count; u += slices) {
    auto total = make_block(u / slices, u);
    for (int64_t slice = 1; slice < slices; ++slice) total.add(make_block(u / slices, u + slice));
    total.store();
  }
}

}  // namespace fastconv::cpu
