// SPDX-License-Identifier: MIT
// fastconv::mlp on CUDA tensors: torch's linear layers, which are matrix products of its own
// library, with the activations between them. Autograd composes the same (mlp_fuses says no), so
// the halves that it would need have no CUDA kernels.
#include <torch/library.h>

#include "bindings/cuda_call.h"
#include "bindings/mlp_args.h"

namespace fastconv::bindings {
namespace {

Tensor mlp_cuda(const Tensor& input, at::TensorList weights, at::TensorList biases,
                std::string_view activation, double negative_slope) {
  check_mlp_args(input, weights, biases);
  const MlpOptions options{parse_activation("mlp", activation), negative_slope};
  for (size_t l = 0; l < weights.size(); ++l)
    const CudaCall check("mlp", {{"input", input}, {"weight", weights[l]}, {"bias", biases[l]}});
  return composed_mlp(input, weights, biases, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("mlp", &mlp_cuda);
}

}  // namespace fastconv::bindings
