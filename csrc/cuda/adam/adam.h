// SPDX-License-Identifier: MIT
// One step of Adam or AdamW for a list of tensors on one GPU, in place. A tensor is a flat array:
// whatever its shape, all of its arrays have the same layout and no gaps. The step counters and
// what follows from them, the learning rate, the scale of gradients and whether to step at all are
// read by the kernels from GPU memory: a captured graph replays the next step. Nothing waits for
// the GPU. Who calls it: bindings/adam_gpu.cpp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/adam_math.h"

namespace fastconv::cuda {

// Pointers to GPU memory. Parameter and gradient have the element type of `type`, the averages its
// state type; every pointer is aligned to its element.
struct AdamTensor {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;  // nullptr: not amsgrad
  float* step;           // one number: the steps taken so far; goes up by one
  int64_t size;
  AdamType type;
  int32_t group;
};

struct AdamGroup {
  const float* lr_pointer;  // GPU memory; nullptr: lr
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  bool decoupled_weight_decay;
  bool maximize;
};

// What a list of tensors keeps on the GPU from step to step; all zeros at first.
struct AdamState {
  double squares;         // of the last norm: the sum of all squared gradients, unscaled
  double norm;            // the same with other_squares, under a root
  double factor;          // what clips the unscaled gradients
  int64_t skipped_steps;  // left out because of skip_nonfinite
  int32_t nonfinite;      // any gradient of the last norm was infinite or not a number
  int32_t skip;           // the step that follows the last norm is left out
  uint32_t norm_ticket;   // blocks done; zero between launches
  uint32_t update_ticket;
};

struct AdamStep {
  const AdamTensor* tensors;  // those with a gradient; host memory, read before the launch returns
  int64_t count;
  const AdamGroup* groups;  // host memory
  const float* grad_scale;  // GPU memory or nullptr: gradients are divided by it, and stored so
  const float* found_inf;   // GPU memory or nullptr: not zero leaves the step out
  double max_norm;          // of all gradients together; negative: no clipping
  bool skip_nonfinite;
  double other_squares;  // of gradients stepped elsewhere, unscaled: they count in the norm
  bool others_finite;
  // Arrays of some tensors overlap: one launch per tensor, in the order of the list.
  bool ordered;
  AdamState* state;  // GPU memory
  int32_t multiprocessors;
};

// True when the step looks at all gradients before it starts.
inline bool adam_needs_norm(const AdamStep& step) {
  return step.max_norm >= 0.0 || step.skip_nonfinite;
}

// Elements per block: enough blocks to fill the GPU several times over, and no more.
int64_t adam_chunk(int64_t elements, int32_t multiprocessors);

// Of launch_adam_norm.
int64_t adam_norm_workspace_bytes(const AdamStep& step);

// Fills `squares`, `norm`, `factor`, `nonfinite` and `skip` of the state, bitwise the same from run
// to run, and counts a skipped step. `workspace` is GPU memory, aligned to 8 bytes.
cudaError_t launch_adam_norm(const AdamStep& step, void* workspace, cudaStream_t stream);

// The update, with the factor and the decision that launch_adam_norm left, if adam_needs_norm.
cudaError_t launch_adam_update(const AdamStep& step, cudaStream_t stream);

}  // namespace fastconv::cuda
