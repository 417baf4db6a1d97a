// SPDX-License-Identifier: MIT
#include "cuda/conv2d/conv2d_grad_weight_gemm.cuh"

namespace fastconv::cuda {

cudaError_t launch_conv2d_grad_weight_tf32x3(const GradWeightGemm& gemm, int tile,
                                             cudaStream_t stream) {
  static_assert(kFirstTf32x3GradWeightTile == 1);
  if (tile != 1) return cudaErrorInvalidValue;
  return launch_conv2d_grad_weight_tile<Tf32x3Math, 1>(gemm, stream);
}

}  // namespace fastconv::cuda
