// SPDX-License-Identifier: MIT
// Uninitialised result tensors.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastconv::bindings {

// As at::empty; large blocks come from the block cache (block_cache.h).
at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                        at::MemoryFormat format);

}  // namespace fastconv::bindings
