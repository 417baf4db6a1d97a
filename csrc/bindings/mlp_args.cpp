// SPDX-License-Identifier: MIT
#include "bindings/mlp_args.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace fastconv::bindings {
namespace {

// Larger matrices than this are torch's: its library blocks them for L2 and L3.
constexpr int64_t kMostWeights = 256 * 1024;

}  // namespace

void check_mlp_args(const Tensor& input, at::TensorList weights, at::TensorList biases) {
  TORCH_CHECK_VALUE(!weights.empty() && weights.size() == biases.size(),
                    "mlp: expected at least one weight and as many biases, got ", weights.size(),
                    " weights and ", biases.size(), " biases");
  TORCH_CHECK_VALUE(input.dim() >= 1, "mlp: expected input of shape [..., features], got a scalar");
  const auto dtype = input.scalar_type();
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor &w = weights[l], &b = biases[l];
    const c10::SymInt features = l == 0 ? input.sym_size(-1) : weights[l - 1].sym_size(0);
    TORCH_CHECK_VALUE(w.dim() == 2 && w.sym_size(1) == features, "mlp: expected weight ", l,
                      " of shape [out, ", features, "], got ", w.sym_sizes());
    TORCH_CHECK_VALUE(b.dim() == 1 && b.sym_size(0) == w.sym_size(0), "mlp: expected bias ", l,
                      " of shape [", w.sym_size(0), "], got ", b.sym_sizes());
    TORCH_CHECK(w.scalar_type() == dtype && b.scalar_type() == dtype, "mlp: expected weight and ",
                "bias ", l, " of the input's dtype ", dtype, ", got ", w.scalar_type(), " and ",
                b.scalar_type());
  }
}

bool mlp_fuses(const Tensor& input, at::TensorList weights, at::TensorList /*biases*/,
               const MlpOptions& options) {
  if (input.is_cuda() || input.scalar_type() != at::kFloat || input.dim() != 2) return false;
  if (options.activation == Activation::kLeakyRelu && !(options.negative_slope >= 0)) return false;
  for (const Tensor& w : weights) {
    const int64_t elements = w.sym_numel().guard_int(__FILE__, __LINE__);
    if (elements == 0 || elements > kMostWeights) return false;
  }
  return true;
}

Tensor composed_mlp(const Tensor& input, at::TensorList weights, at::TensorList biases,
                    const MlpOptions& options) {
  Tensor x = input;
  for (size_t l = 0; l < weights.size(); ++l) {
    x = at::linear(x, weights[l], biases[l]);
    if (l + 1 < weights.size()) x = activate(x, options.activation, options.negative_slope);
  }
  return x;
}

}  // namespace fastconv::bindings
