// SPDX-License-Identifier: MIT
// The part of an Adam step that happens on one GPU. Nothing here waits for the GPU, except what is
// said to.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "bindings/adam_options.h"
#include "bindings/adam_table.h"

namespace fastconv::bindings {

// Whether this build has kernels for Adam on this device.
bool adam_gpu_built(c10::Device device);

struct AdamGpu {
  c10::Device device;
  AdamTable table;
  std::vector<size_t> group_of_row;
  at::Tensor state;  // cuda::AdamState as bytes; undefined until the first step
};

// How a step treats gradients before the update.
struct AdamGpuGradients {
  at::Tensor grad_scale;  // undefined: none
  at::Tensor found_inf;   // undefined: none
  double max_norm = -1.0;
  bool skip_nonfinite = false;
  double other_squares = 0.0;
  bool others_finite = true;
};

struct AdamGpuNorm {
  double squares = 0.0;  // of this GPU's gradients, unscaled
  bool finite = true;
  double norm = 0.0;    // with those stepped elsewhere
  double factor = 1.0;  // what clips them
  bool skipped = false;
  int64_t skipped_steps = 0;
};

// One step of the rows with a gradient; false when there are none. `groups` are the optimizer's, by
// the numbers in group_of_row.
bool adam_gpu_step(AdamGpu& gpu, const std::vector<const AdamOptions*>& groups,
                   const AdamGpuGradients& gradients);

// Looks at the gradients only, for adam_gpu_read(); false when there are none.
bool adam_gpu_measure(AdamGpu& gpu, const std::vector<const AdamOptions*>& groups,
                      const AdamGpuGradients& gradients);

// What the last step or measurement found. Waits for the GPU.
AdamGpuNorm adam_gpu_read(const AdamGpu& gpu);

}  // namespace fastconv::bindings
