// SPDX-License-Identifier: MIT
// CPU-only builds: no parameter ever gets here, because adam_gpu_built says no.
#include <c10/util/Exception.h>

#include "bindings/adam_gpu.h"

namespace fastconv::bindings {

bool adam_gpu_built(c10::Device) {
  return false;
}

bool adam_gpu_step(AdamGpu&, const std::vector<const AdamOptions*>&, const AdamGpuGradients&) {
  TORCH_INTERNAL_ASSERT(false);
}

bool adam_gpu_measure(AdamGpu&, const std::vector<const AdamOptions*>&, const AdamGpuGradients&) {
  TORCH_INTERNAL_ASSERT(false);
}

AdamGpuNorm adam_gpu_read(const AdamGpu&) {
  return {};
}

}  // namespace fastconv::bindings
