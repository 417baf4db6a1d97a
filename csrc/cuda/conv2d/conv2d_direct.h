// SPDX-License-Identifier: MIT
// float32 convolutions of few channels, as in LeNet or behind an RGB image: the direct kernels of
// csrc/cuda/conv_block2d without their pooling. One launch for the forward pass and the input
// gradient each, three for the weight gradient; tensor cores would multiply padding, and need
// copies of both operands first. Internal: chosen by conv2d.cu, under the contract of conv2d.h.
#pragma once

#include <cuda_runtime.h>

#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

// True for the calls that the launchers below serve: what conv_block2d_applies says (of the input
// gradient; the others take strides), float32, and contiguous tensors. The input may have any
// strides, the forward pass' weights all that space their taps evenly, and its output may be
// channels-last where its channels are whole vectors.
bool conv2d_direct_applies(const Conv2dForward& call);
bool conv2d_direct_applies(const Conv2dGradInput& call);
bool conv2d_direct_applies(const Conv2dGradWeight& call);

int64_t conv2d_direct_workspace_bytes(const Conv2dGradWeight& call);

cudaError_t launch_conv2d_forward_direct(const Conv2dForward& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_input_direct(const Conv2dGradInput& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_weight_direct(const Conv2dGradWeight& call, cudaStream_t stream);

}  // namespace fastconv::cuda
