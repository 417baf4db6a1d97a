// SPDX-License-Identifier: MIT
#include "cuda/conv2d/conv2d_grad_weight_gemm.cuh"

namespace fastconv::cuda {

cudaError_t launch_conv2d_grad_weight_float16(const GradWeightGemm& gemm, int tile,
                                              cudaStream_t stream) {
  return tile == 0 ? launch_conv2d_grad_weight_tile<Float16Math, 0>(gemm, stream)
                   : launch_conv2d_grad_weight_tile<Float16Math, 1>(gemm, stream);
}

}  // namespace fastconv::cuda
