// SPDX-License-Identifier: MIT
// The one parser and checker of the arguments of max_pool2d and avg_pool2d, for every device and
// for forward and backward.
#pragma once

#include <optional>

#include "bindings/ops.h"
#include "common/shapes.h"

namespace fastconv::bindings {

// Sizes of one pooling call, from the sizes of a 3-D or 4-D input (3-D: batch 1). Throws ValueError
// with a message "<op>: expected ..., got ...".
Pool2dShape parse_pool2d_args(const char* op, at::IntArrayRef input_size,
                              const PoolOptions& options);

// Throws unless the dtype is one that pooling supports.
void check_pool2d_dtype(const char* op, at::ScalarType dtype);

// Throws unless divisor_override is absent or other than zero.
void check_divisor_override(std::optional<int64_t> divisor_override);

// Throws unless `tensor` has these sizes and this dtype.
void check_pool2d_tensor(const char* op, const char* name, const Tensor& tensor,
                         at::IntArrayRef expected, at::ScalarType dtype);

// The options of an average pooling that it shares with max pooling.
PoolOptions window_of(const AvgPoolOptions& options);

at::MemoryFormat pool2d_format(bool channels_last);

// An uninitialised result of the call, of the rank of the input.
Tensor new_pool2d_output(const Pool2dShape& shape, int64_t rank, const at::TensorOptions& options,
                         bool channels_last);

// Throws unless `tensor` has the sizes of the call's result, for an input of this rank, and this
// dtype.
void check_pool2d_output(const char* op, const char* name, const Tensor& tensor,
                         const Pool2dShape& shape, size_t rank, at::ScalarType dtype);

// True when torch's own operator pools this tensor: dtypes without kernels of ours, and bfloat16 in
// channels_last, where torch's is vectorised.
bool pools_on_torch(const Tensor& input);

// True when results for `input` are laid out channels_last, as torch lays them out.
bool pools_channels_last(const Tensor& input);

}  // namespace fastconv::bindings
