// SPDX-License-Identifier: MIT
#pragma once

namespace fastconv::bindings {

// Registers a refusal for CUDA tensors with every operator that has a kernel for the CPU alone.
// Once, after the static registrations of the extension have run.
void refuse_cuda_without_kernels();

}  // namespace fastconv::bindings
