// SPDX-License-Identifier: MIT
// A chain of fully connected layers as one call, forward and backward, float32:
//
//   output[l] = activation(output[l - 1] weight[l]^T + bias[l])        output[-1] = input
//
// with no activation behind the last layer. All matrices are contiguous and row-major: activations
// [batch, features], weights [out_features, in_features].
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

struct MlpLayer {
  int64_t in_features;
  int64_t out_features;
  const float* weight;
  const float* bias;  // or nullptr
  float* output;      // [batch, out_features]: written by the forward pass, read by the backward
  float* grad_weight;
  float* grad_bias;  // or nullptr
};

struct MlpCall {
  int64_t batch;       // at least 1
  const float* input;  // [batch, layers[0].in_features]
  const MlpLayer* layers;
  int64_t layer_count;  // at least 1
  Activation activation;
  float negative_slope;      // of kLeakyRelu, at least 0
  const float* grad_output;  // backward: [batch, out_features of the last layer]
  float* grad_input;         // backward: [batch, in_features of the first], or nullptr
};

struct MlpPlan {
  Isa isa;
  int64_t slots;
  int64_t scratch_floats;  // memory the run needs, uninitialised
};

MlpPlan plan_mlp_forward(const MlpCall& call);
void mlp_forward(const MlpPlan& plan, const MlpCall& call, float* scratch);

MlpPlan plan_mlp_backward(const MlpCall& call);
void mlp_backward(const MlpPlan& plan, const MlpCall& call, float* scratch);

}  // namespace fastconv::cpu
