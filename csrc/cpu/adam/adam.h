// SPDX-License-Identifier: MIT
// One step of Adam or AdamW for a list of tensors, in place. A tensor is a flat array: whatever its
// shape, all of its arrays have the same layout and no gaps. Work is handed out by chunks of at
// most kAdamChunkSize elements, in a table that stays valid while sizes do; the list of tensors
// holds the pointers and scalars of the step. Who calls it: bindings/adam_*.cpp.
#pragma once

#include <cstdint>

#include "common/adam_math.h"

namespace fastconv::cpu {

using fastconv::AdamType;
using fastconv::kAdamTypeCount;

inline constexpr int64_t kAdamChunkSize = 4096;

struct AdamTensor {
  void* param;
  void* grad;  // nullptr: this tensor takes no part in the step
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;  // nullptr: not amsgrad
  int64_t size;
  AdamType type;
  AdamCoefficients coefficients;
};

struct AdamChunk {
  int64_t tensor;
  int64_t begin;
  int64_t size;
  int64_t before;  // elements in all chunks before this one
};

// What happens to every gradient first: g *= unscale, stored if write_back; then g *= factor.
struct AdamGradient {
  double unscale = 1.0;
  double factor = 1.0;
  bool write_back = false;
};

struct AdamList {
  const AdamTensor* tensors;
  const AdamChunk* chunks;
  int64_t chunk_count;
  // The arrays of some tensors overlap: everything runs on one thread, in the order of the list.
  bool ordered;
};

int64_t adam_chunk_count(const AdamTensor* tensors, int64_t count);

// Writes adam_chunk_count() chunks, tensor after tensor.
void adam_make_chunks(const AdamTensor* tensors, int64_t count, AdamChunk* chunks);

// The sum of all squared gradients times unscale, in double; `partial` has room for one number per
// chunk. The result does not depend on the number of threads.
double adam_sum_of_squares(const AdamList& list, double unscale, double* partial);

// False when any gradient is infinite or not a number. One thread: called when a sum is not finite.
bool adam_gradients_finite(const AdamList& list);

// Subnormal numbers count as zero, and come out as zero. `last_first` goes through large lists from
// the end, by blocks of megabytes: what was touched last, by the norm or by a step in the other
// direction, is still in cache. The result is the same. Ordered lists ignore it.
void adam_update(const AdamList& list, const AdamGradient& gradient, bool last_first);

}  // namespace fastconv::cpu
