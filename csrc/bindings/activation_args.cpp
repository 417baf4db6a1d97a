// SPDX-License-Identifier: MIT
#include "bindings/activation_args.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace fastconv::bindings {
namespace {

constexpr std::string_view kActivationNames[kActivations] = {"none", "relu", "leaky_relu",
                                                             "sigmoid", "tanh"};

}  // namespace

Activation parse_activation(const char* op, std::string_view name) {
  for (int i = 0; i < kActivations; ++i)
    if (name == kActivationNames[i]) return static_cast<Activation>(i);
  TORCH_CHECK_VALUE(false, op,
                    ": expected activation one of none, relu, leaky_relu, sigmoid, tanh, got '",
                    name, "'");
}

std::string_view activation_name(Activation activation) {
  return kActivationNames[static_cast<int>(activation)];
}

at::Tensor activate(const at::Tensor& x, Activation activation, double negative_slope) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kLeakyRelu:
      return at::leaky_relu(x, negative_slope);
    case Activation::kSigmoid:
      return at::sigmoid(x);
    case Activation::kTanh:
      return at::tanh(x);
    case Activation::kNone:
      break;
  }
  return x;
}

at::Tensor activate_in_place(at::Tensor x, Activation activation, double negative_slope) {
  switch (activation) {
    case Activation::kRelu:
      return x.relu_();
    case Activation::kLeakyRelu:
      return negative_slope >= 0 ? at::leaky_relu_(x, negative_slope)
                                 : at::leaky_relu(x, negative_slope);
    case Activation::kSigmoid:
      return x.sigmoid_();
    case Activation::kTanh:
      return x.tanh_();
    case Activation::kNone:
      break;
  }
  return x;
}

}  // namespace fastconv::bindings
