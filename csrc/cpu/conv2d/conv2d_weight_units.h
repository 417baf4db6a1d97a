// SPDX-License-Identifier: MIT
// How the weight gradients split their work: a unit is a block of the sums over one slice of the
// pixels. Only the algorithms of conv2d_grad_weight.h include this.
#pragma once

#include <cstdint>

#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {

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
