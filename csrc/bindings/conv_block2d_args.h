// SPDX-License-Identifier: MIT
// The one parser and checker of conv_block2d's options, and the choice between the fused kernels
// and the composed operators.
#pragma once

#include <string_view>

#include "bindings/activation_args.h"
#include "bindings/ops.h"
#include "common/shapes.h"

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

// The options of a call by its operator's arguments. Throws ValueError "conv_block2d: expected
// activation one of ..., got ...", likewise for pool, for any other name.
ConvBlock2dOptions conv_block2d_options(at::IntArrayRef stride, at::IntArrayRef padding,
                                        at::IntArrayRef dilation, int64_t groups,
                                        std::string_view activation, double negative_slope,
                                        std::string_view pool, at::IntArrayRef pool_size,
                                        at::IntArrayRef pool_stride);

std::string_view pool_name(PoolKind pool);

// True when the fused float32 kernels of the input's device serve a call of these sizes. Reads
// sizes other than the batch as plain integers; false for anything that the composed operators
// refuse.
bool conv_block2d_fuses(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const ConvBlock2dOptions& options);

// Sizes of a fused call's convolution; throws ValueError where conv2d would, or where the call does
// not fuse.
Conv2dShape parse_fused_args(const Tensor& input, const Tensor& weight, const Tensor& bias,
                             const ConvBlock2dOptions& options);

// Options of a fused call: those that the operators of its halves leave open.
ConvBlock2dOptions fused_options(at::IntArrayRef padding, std::string_view activation,
                                 double negative_slope, std::string_view pool);

// Throws ValueError unless the tensors that a fused backward pass gets are as its forward pass left
// them: float32 of the output's sizes, and one byte per winning tap, [batch, offset_bytes].
void check_fused_saved(at::IntArrayRef output_sizes, int64_t offset_bytes,
                       const Tensor& grad_output, const Tensor& output, const Tensor& offsets);

// The block's pooling of x, by the operators of this library.
Tensor pooled_block2d(const Tensor& x, const ConvBlock2dOptions& options);

// conv2d, activation and pooling one after the other, differentiable. `on_torch` takes torch's own
// operators, which have rules for torch.func transforms and forward-mode differentiation.
Tensor composed_block2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const ConvBlock2dOptions& options, bool on_torch);

}  // namespace fastconv::bindings
