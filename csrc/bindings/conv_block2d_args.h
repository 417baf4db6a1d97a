// SPDX-License-Identifier: MIT
// The one parser and checker of conv_block2d's options, and the choice between the fused kernels
// and the composed operators.
#pragma once

#include <string_view>

#include "bindings/activation_args.h"
#include "bindings/ops.h"
#include "cpu/conv_block2d/conv_block2d.h"

namespace fastconv::bindings {

enum class PoolKind { kNone, kMax, kAvg };

// As the user wrote them; names already understood.
struct ConvBlock2dOptions {
  Conv2dOptions conv;
  Activation activation;
  double negative_slope;
  PoolKind pool;
  at::IntArrayRef pool_size;
  at::IntArrayRef pool_stride;  // empty: pool_size
};

// Throws ValueError "conv_block2d: expected pool one of ..., got ..." for any other name.
PoolKind parse_pool(std::string_view name);

std::string_view pool_name(PoolKind pool);

// True when the fused float32 kernels serve a call of these sizes. Reads sizes other than the batch
// as plain integers; false for anything that the composed operators refuse.
bool conv_block2d_fuses(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const ConvBlock2dOptions& options);

// Sizes of a fused call; throws ValueError where conv2d would, or where it does not fuse.
cpu::ConvBlock2dShape parse_fused_args(const Tensor& input, const Tensor& weight,
                                       const Tensor& bias, const ConvBlock2dOptions& options);

// conv2d, activation and pooling one after the other, differentiable. `on_torch` takes torch's own
// operators, which have rules for torch.func transforms and forward-mode differentiation.
Tensor composed_block2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const ConvBlock2dOptions& options, bool on_torch);

}  // namespace fastconv::bindings
