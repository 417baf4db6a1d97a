// SPDX-License-Identifier: MIT
// A CPU-only build answers CUDA tensors with one clear sentence instead of a dispatcher dump.
#include <c10/util/Exception.h>
#include <torch/library.h>

namespace {

void refuse_cuda(const c10::OperatorHandle& op, torch::jit::Stack* /*stack*/) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.operator_name().name,
                              ": expected CPU tensors, got CUDA tensors; this build of fastconv "
                              "has no CUDA kernels");
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  for (const char* name :
       {"conv2d", "_conv2d_backward", "conv_block2d", "_conv_block2d_training",
        "_conv_block2d_backward", "mlp", "_mlp_training", "_mlp_backward", "max_pool2d",
        "max_pool2d_with_indices", "_max_pool2d_training", "_max_pool2d_indices",
        "_max_pool2d_backward", "_max_pool2d_gather", "avg_pool2d", "_avg_pool2d_backward",
        "lstm_layer", "_lstm_layer_training", "_lstm_layer_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>());
}
