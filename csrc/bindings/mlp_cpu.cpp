// SPDX-License-Identifier: MIT
// fastconv::mlp and its halves on CPU tensors: check, allocate, call the kernels.
#include "cpu/mlp/mlp.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "bindings/mlp_args.h"
#include "bindings/outputs.h"
#include "bindings/scratch.h"

namespace fastconv::bindings {
namespace {

// Layers as the kernels see them, on contiguous tensors that it keeps alive.
struct Layers {
  Layers(at::TensorList weights, at::TensorList outputs) {
    tensors.reserve(weights.size());
    for (size_t l = 0; l < weights.size(); ++l) {
      tensors.push_back(weights[l].contiguous());
      layers.push_back({weights[l].size(1), weights[l].size(0),
                        tensors.back().const_data_ptr<float>(), nullptr, nullptr, nullptr,
                        nullptr});
      if (l < outputs.size()) layers.back().output = outputs[l].mutable_data_ptr<float>();
    }
  }
  std::vector<Tensor> tensors;
  std::vector<cpu::MlpLayer> layers;
};

cpu::MlpCall call_of(const Tensor& input, const Layers& layers, const MlpOptions& options) {
  return {input.size(0),
          input.const_data_ptr<float>(),
          layers.layers.data(),
          static_cast<int64_t>(layers.layers.size()),
          options.activation,
          static_cast<float>(options.negative_slope),
          nullptr,
          nullptr};
}

MlpOptions fused_options(const Tensor& input, at::TensorList weights, at::TensorList biases,
                         std::string_view activation, double negative_slope) {
  check_mlp_args(input, weights, biases);
  const MlpOptions options{parse_activation("mlp", activation), negative_slope};
  TORCH_CHECK_VALUE(mlp_fuses(input, weights, biases, options),
                    "mlp: expected a call that the fused kernels serve, got input ", input.sizes());
  return options;
}

std::vector<Tensor> mlp_training_cpu(const Tensor& input, at::TensorList weights,
                                     at::TensorList biases, std::string_view activation,
                                     double negative_slope) {
  const MlpOptions options = fused_options(input, weights, biases, activation, negative_slope);
  std::vector<Tensor> outputs;
  outputs.reserve(weights.size());
  for (const Tensor& w : weights)
    outputs.push_back(
        empty_output({input.size(0), w.size(0)}, input.options(), at::MemoryFormat::Contiguous));
  if (input.size(0) == 0) return outputs;
  const Tensor x = input.contiguous();
  Layers layers(weights, outputs);
  std::vector<Tensor> kept;
  for (size_t l = 0; l < biases.size(); ++l) {
    kept.push_back(biases[l].contiguous());
    layers.layers[l].bias = kept.back().const_data_ptr<float>();
  }
  const cpu::MlpCall call = call_of(x, layers, options);
  const cpu::MlpPlan plan = cpu::plan_mlp_forward(call);
  const Scratch scratch(plan.scratch_floats);
  cpu::mlp_forward(plan, call, scratch.data());
  return outputs;
}

// Without a backward pass torch's products are up to 1.6x as fast on a handful of images
// (benchmarks/results/README.md).
bool torch_is_faster(const Tensor& input, at::TensorList weights) {
  constexpr int64_t kLeastImages = 5, kMostImages = 19, kLeastWeights = 16384;
  const int64_t batch = input.size(0);
  return batch >= kLeastImages && batch <= kMostImages &&
         std::any_of(weights.begin(), weights.end(),
                     [](const Tensor& w) { return w.numel() >= kLeastWeights; });
}

// By torch's operators, without a graph, hence in place.
Tensor mlp_by_torch(const Tensor& input, at::TensorList weights, at::TensorList biases,
                    const MlpOptions& options) {
  Tensor x = input;
  for (size_t l = 0; l < weights.size(); ++l) {
    x = at::linear(x, weights[l], biases[l]);
    if (l + 1 < weights.size())
      x = activate_in_place(x, options.activation, options.negative_slope);
  }
  return x;
}

Tensor mlp_cpu(const Tensor& input, at::TensorList weights, at::TensorList biases,
               std::string_view activation, double negative_slope) {
  check_mlp_args(input, weights, biases);
  const MlpOptions options{parse_activation("mlp", activation), negative_slope};
  if (!mlp_fuses(input, weights, biases, options) || torch_is_faster(input, weights))
    return mlp_by_torch(input, weights, biases, options);
  return mlp_training_cpu(input, weights, biases, activation, negative_slope).back();
}

// Gradients of weight and bias of each layer in turn, then that of the input if it is wanted.
std::vector<Tensor> mlp_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                     at::TensorList weights, at::TensorList hidden,
                                     std::string_view activation, double negative_slope,
                                     bool input_grad) {
  const MlpOptions options{parse_activation("mlp", activation), negative_slope};
  const int64_t batch = input.size(0), last = weights.back().size(0);
  TORCH_CHECK_VALUE(
      hidden.size() + 1 == weights.size() && grad_output.sizes() == at::IntArrayRef({batch, last}),
      "mlp: expected grad_output of shape [", batch, ", ", last, "] and ", weights.size() - 1,
      " hidden outputs, got ", grad_output.sizes(), " and ", hidden.size());
  std::vector<Tensor> kept, grads;
  for (const Tensor& h : hidden) kept.push_back(h.contiguous());
  const auto fresh = [&](at::IntArrayRef sizes) {
    grads.push_back(empty_output(sizes, input.options(), at::MemoryFormat::Contiguous));
    return grads.back().mutable_data_ptr<float>();
  };
  Layers layers(weights, kept);
  for (size_t l = 0; l < weights.size(); ++l) {
    layers.layers[l].grad_weight = fresh(weights[l].sizes());
    layers.layers[l].grad_bias = fresh({weights[l].size(0)});
  }
  float* grad_input = input_grad ? fresh(input.sizes()) : nullptr;
  if (batch == 0) {
    for (const Tensor& grad : grads) grad.zero_();
    return grads;
  }
  const Tensor x = input.contiguous(), go = grad_output.contiguous();
  cpu::MlpCall call = call_of(x, layers, options);
  call.grad_output = go.const_data_ptr<float>();
  call.grad_input = grad_input;
  const cpu::MlpPlan plan = cpu::plan_mlp_backward(call);
  const Scratch scratch(plan.scratch_floats);
  cpu::mlp_backward(plan, call, scratch.data());
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("mlp", &mlp_cpu);
  m.impl("_mlp_training", &mlp_training_cpu);
  m.impl("_mlp_backward", &mlp_backward_cpu);
}

}  // namespace fastconv::bindings
