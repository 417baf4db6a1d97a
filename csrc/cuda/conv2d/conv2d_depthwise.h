// SPDX-License-Identifier: MIT
// Depthwise convolution: every output channel reads one input channel (groups == in_channels, with
// one or more output channels each). No reduction over channels, so nothing for tensor cores: bound
// by memory. Internal: chosen by conv2d.cu, under the contract of conv2d.h.
#pragma once

#include <cuda_runtime.h>

#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

// True for the calls that the launchers below serve: not float64, and sizes that 32 bits number.
bool conv2d_depthwise_applies(const Conv2dCall& call);

// Pieces that the pixels of the weight gradient are cut into; each takes one row of the partials.
int64_t conv2d_depthwise_splits(const Conv2dGradWeight& call);

cudaError_t launch_conv2d_forward_depthwise(const Conv2dForward& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_input_depthwise(const Conv2dGradInput& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_weight_depthwise(const Conv2dGradWeight& call, cudaStream_t stream);

}  // namespace fastconv::cuda
