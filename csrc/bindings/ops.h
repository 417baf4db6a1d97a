// SPDX-License-Identifier: MIT
// The registered operators of fastconv as typed C++ calls through the dispatcher, and the few
// decisions every op shares. Schemas are in schema.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace fastconv::bindings {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensor2 = std::tuple<Tensor, Tensor>;
using Tensor3 = std::tuple<Tensor, Tensor, Tensor>;

// True when a torch.func transform (vmap, grad, jvp, ...) is active. C++ autograd Functions refuse
// to run under one, so the ops then call torch's own operator, which has rules for all of them.
bool inside_functorch();

// True when `tensor` carries a forward-mode tangent; C++ autograd Functions have no forward mode.
bool has_tangent(const Tensor& tensor);

bool requires_grad(const Tensor& tensor);

// True in grad mode when `tensor` asks for a gradient.
bool differentiates(const Tensor& tensor);

// nullopt for an undefined tensor.
OptionalTensor if_defined(Tensor tensor);

// torch computes these dtypes itself: bfloat16 and float16, for which no kernel of ours is faster
// yet, integers and complex numbers.
bool runs_on_torch_kernels(at::ScalarType dtype);

// Each array holds one value for both dimensions or (height, width).
struct Conv2dOptions {
  at::IntArrayRef stride;
  at::IntArrayRef padding;
  at::IntArrayRef dilation;
  int64_t groups;
};

struct PoolOptions {
  at::IntArrayRef kernel_size;
  at::IntArrayRef stride;  // empty: kernel_size
  at::IntArrayRef padding;
  at::IntArrayRef dilation;
  bool ceil_mode;
};

Tensor call_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   const Conv2dOptions& options);

// Gradients that output_mask does not ask for come back undefined.
Tensor3 call_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const Conv2dOptions& options, std::array<bool, 3> output_mask);

Tensor call_conv_block2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const Conv2dOptions& conv, std::string_view activation,
                         double negative_slope, std::string_view pool, at::IntArrayRef pool_size,
                         at::IntArrayRef pool_stride);

// The pooled output and the winning taps, in an order that only the kernels know.
Tensor2 call_conv_block2d_training(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, at::IntArrayRef padding,
                                   std::string_view activation, double negative_slope,
                                   std::string_view pool);

// Gradients of input, weight and bias; those that output_mask does not ask for are undefined.
Tensor3 call_conv_block2d_backward(const Tensor& grad_output, const Tensor& output,
                                   const Tensor& offsets, const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, at::IntArrayRef padding,
                                   std::string_view activation, double negative_slope,
                                   std::string_view pool, std::array<bool, 3> output_mask);

Tensor call_mlp(const Tensor& input, at::TensorList weights, at::TensorList biases,
                std::string_view activation, double negative_slope);

// The outputs of all layers, the last one without activation.
std::vector<Tensor> call_mlp_training(const Tensor& input, at::TensorList weights,
                                      at::TensorList biases, std::string_view activation,
                                      double negative_slope);

// Gradients of weight and bias of each layer in turn, then that of the input if it is wanted.
std::vector<Tensor> call_mlp_backward(const Tensor& grad_output, const Tensor& input,
                                      at::TensorList weights, at::TensorList hidden,
                                      std::string_view activation, double negative_slope,
                                      bool input_grad);

// Each [C] or absent.
struct BatchNormTensors {
  OptionalTensor weight;
  OptionalTensor bias;
  OptionalTensor running_mean;
  OptionalTensor running_var;
};

struct BatchNormOptions {
  double momentum;
  double eps;
  bool relu;
};

// The output, the mean as [2, C] (batch_norm.h) and 1 / sqrt(var + eps); running statistics move.
Tensor3 call_batch_norm_training(const Tensor& input, const BatchNormTensors& tensors,
                                 const BatchNormOptions& options);

// Precondition: there are running statistics.
Tensor call_batch_norm_inference(const Tensor& input, const BatchNormTensors& tensors,
                                 const BatchNormOptions& options);

// Gradients of input, weight and bias; those that output_mask does not ask for are undefined.
// `training`: mean and invstd are those of the input.
Tensor3 call_batch_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                 const Tensor& invstd, const OptionalTensor& weight,
                                 const OptionalTensor& bias, bool training, bool relu,
                                 std::array<bool, 3> output_mask);

Tensor call_max_pool2d(const Tensor& input, const PoolOptions& options);
Tensor2 call_max_pool2d_with_indices(const Tensor& input, const PoolOptions& options);

// The pooled tensor and, per output, the number of the winning tap within its window.
Tensor2 call_max_pool2d_training(const Tensor& input, const PoolOptions& options);

// torch's indices from the offsets of a training pass.
Tensor call_max_pool2d_indices(const Tensor& offsets, c10::SymIntArrayRef input_size,
                               const PoolOptions& options);

Tensor call_max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets,
                                c10::SymIntArrayRef input_size, const PoolOptions& options,
                                bool channels_last);

// `source`, which has the input's shape, at the winning taps.
Tensor call_max_pool2d_gather(const Tensor& source, const Tensor& offsets,
                              const PoolOptions& options);

struct AvgPoolOptions {
  at::IntArrayRef kernel_size;
  at::IntArrayRef stride;  // empty: kernel_size
  at::IntArrayRef padding;
  bool ceil_mode;
  bool count_include_pad;
  std::optional<int64_t> divisor_override;
};

Tensor call_avg_pool2d(const Tensor& input, const AvgPoolOptions& options);
Tensor call_avg_pool2d_backward(const Tensor& grad_output, c10::SymIntArrayRef input_size,
                                const AvgPoolOptions& options, bool channels_last);

}  // namespace fastconv::bindings
