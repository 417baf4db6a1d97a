// SPDX-License-Identifier: MIT
// The registered operators of fastconv as typed C++ calls through the dispatcher, and the few
// decisions every op shares. Schemas are in schema.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace fastconv::bindings {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensor3 = std::tuple<Tensor, Tensor, Tensor>;

// True when a torch.func transform (vmap, grad, jvp, ...) is active. C++ autograd Functions refuse
// to run under one, so the ops then call torch's own operator, which has rules for all of them.
bool inside_functorch();

// True when `tensor` carries a forward-mode tangent; C++ autograd Functions have no forward mode.
bool has_tangent(const Tensor& tensor);

bool requires_grad(const Tensor& tensor);

// torch computes convolutions of these itself: no kernel of ours is faster yet.
bool runs_on_torch_kernels(at::ScalarType dtype);

struct Conv2dOptions {
  at::IntArrayRef stride;
  at::IntArrayRef padding;
  at::IntArrayRef dilation;
  int64_t groups;
};

Tensor call_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   const Conv2dOptions& options);

// Gradients that output_mask does not ask for come back undefined.
Tensor3 call_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const Conv2dOptions& options, std::array<bool, 3> output_mask);

}  // namespace fastconv::bindings
