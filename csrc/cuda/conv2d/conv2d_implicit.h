// SPDX-License-Identifier: MIT
// Turns forward and grad input into the matrix product of conv2d_gemm.h: which calls it can serve,
// what has to be copied into another layout first, and the phases of a strided grad input.
#pragma once

#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

// Tile for a product of `rows` x `columns` results, `products` times: the largest one that gives
// every multiprocessor a block, and is not more than half empty along the columns.
int choose_conv2d_tile(int64_t rows, int64_t columns, int64_t products, Conv2dMath math,
                       const Device& device);

// cp.async, bfloat16 and tf32 came with compute capability 8.0.
inline bool has_tensor_cores(const Conv2dCall& call) {
  return call.device.compute_capability >= 80 && call.element != Conv2dElement::kFloat64;
}

Conv2dMath conv2d_math(Conv2dElement element, bool allow_tf32);

// False when the kernel cannot serve the call; otherwise fills in `plan`. A tile < 0 is chosen.
bool plan_conv2d_forward_implicit(const Conv2dForward& call, int tile, Conv2dPlan* plan);
bool plan_conv2d_grad_input_implicit(const Conv2dGradInput& call, int tile, Conv2dPlan* plan);

cudaError_t launch_conv2d_forward_implicit(const Conv2dForward& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_input_implicit(const Conv2dGradInput& call, cudaStream_t stream);

}  // namespace fastconv::cuda
