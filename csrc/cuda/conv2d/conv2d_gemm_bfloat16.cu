// SPDX-License-Identifier: MIT
#include "cuda/conv2d/conv2d_gemm.cuh"

namespace fastconv::cuda {

cudaError_t launch_conv2d_gemm_bfloat16(const ConvGemm& gemm, int tile, cudaStream_t stream) {
  switch (tile) {
    case 0:
      return launch_conv2d_gemm_tile<BFloat16Math, 0>(gemm, stream);
    case 1:
      return launch_conv2d_gemm_tile<BFloat16Math, 1>(gemm, stream);
    case 2:
      return launch_conv2d_gemm_tile<BFloat16Math, 2>(gemm, stream);
    case 3:
      return launch_conv2d_gemm_tile<BFloat16Math, 3>(gemm, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastconv::cuda
