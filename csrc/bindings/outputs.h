// SPDX-License-Identifier: MIT
// Uninitialised result tensors.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastconv::bindings {

// As at::empty. A large block is asked to live in huge pages: touching 50 MB of fresh 4 KB pages
// for the first time costs several times what a memory-bound kernel needs to fill them.
at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                        at::MemoryFormat format);

}  // namespace fastconv::bindings
