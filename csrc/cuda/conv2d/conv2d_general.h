// SPDX-License-Identifier: MIT
// The general convolution kernels: every shape, stride and element type, one thread per result.
// They serve what the tensor-core kernels do not, and float64.
#pragma once

#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

// Pieces that the pixels of the weight gradient are cut into, for enough threads; each takes one
// row of the partials.
int64_t conv2d_general_splits(const Conv2dGradWeight& call);

cudaError_t launch_conv2d_forward_general(const Conv2dForward& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_input_general(const Conv2dGradInput& call, cudaStream_t stream);
// Uses plan.splits and the workspace: see conv2d_partials.h.
cudaError_t launch_conv2d_grad_weight_general(const Conv2dGradWeight& call, cudaStream_t stream);

}  // namespace fastconv::cuda
