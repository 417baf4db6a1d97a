// SPDX-License-Identifier: MIT
#include "bindings/pool2d_args.h"

#include <c10/util/Exception.h>

#include <array>
#include <limits>

#include "bindings/outputs.h"
#include "common/checked.h"

namespace fastconv::bindings {
namespace {

constexpr int64_t kNoDilation[] = {1, 1};
constexpr int64_t kMaxOption = std::numeric_limits<int32_t>::max();  // torch's own limit

void check_pair(const char* op, const char* name, at::IntArrayRef pair, int64_t least) {
  TORCH_CHECK_VALUE(pair.size() == 2, op, ": expected ", name, " of one or two integers, got ",
                    pair);
  for (const int64_t value : pair)
    TORCH_CHECK_VALUE(value >= least && value <= kMaxOption, op, ": expected ", name, " from ",
                      least, " to ", kMaxOption, ", got ", pair);
}

// Output size along one dimension, torch's rule: with ceil_mode the last window may reach past the
// padding but starts inside the input or the padding before it.
int64_t output_size(const char* op, const char* name, int64_t size, int64_t kernel, int64_t stride,
                    int64_t padding, int64_t dilation, bool ceil_mode) {
  int64_t padded = 0;
  TORCH_CHECK_VALUE(checked_add(size, 2 * padding, &padded), op,
                    ": expected sizes that fit 64-bit integers, got ", name, " ", size);
  const int64_t extent = dilation * (kernel - 1) + 1;  // both factors are below 2^31
  const int64_t slack = padded - extent + (ceil_mode ? stride - 1 : 0);
  int64_t outputs = slack < 0 ? 0 : slack / stride + 1;
  if (ceil_mode && (outputs - 1) * stride >= size + padding) --outputs;
  TORCH_CHECK_VALUE(outputs >= 1, op, ": expected a window no larger than the padded input, got ",
                    name, " ", padded, " (padding included) and window extent ", extent);
  return outputs;
}

std::array<int64_t, 4> output_sizes(const Pool2dShape& s) {
  return {s.batch, s.channels, s.out_height, s.out_width};
}

}  // namespace

Pool2dShape parse_pool2d_args(const char* op, at::IntArrayRef input_size,
                              const PoolOptions& options) {
  TORCH_CHECK_VALUE(input_size.size() == 3 || input_size.size() == 4, op,
                    ": expected input of shape [N, C, H, W] or [C, H, W], got ", input_size);
  const at::IntArrayRef image = input_size.slice(input_size.size() - 3);
  TORCH_CHECK_VALUE(image[0] > 0 && image[1] > 0 && image[2] > 0, op,
                    ": expected input with channels, height and width of at least 1, got ",
                    input_size);
  const at::IntArrayRef stride = options.stride.empty() ? options.kernel_size : options.stride;
  check_pair(op, "kernel_size", options.kernel_size, 1);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", options.padding, 0);
  check_pair(op, "dilation", options.dilation, 1);
  TORCH_CHECK_VALUE(options.padding[0] <= options.kernel_size[0] / 2 &&
                        options.padding[1] <= options.kernel_size[1] / 2,
                    op, ": expected padding of at most half the kernel size, got padding ",
                    options.padding, " and kernel_size ", options.kernel_size);
  TORCH_CHECK_VALUE(options.kernel_size[0] * options.kernel_size[1] <= kMaxOption, op,
                    ": expected a window of fewer than 2^31 elements, got kernel_size ",
                    options.kernel_size);

  Pool2dShape shape{};
  shape.batch = input_size.size() == 4 ? input_size[0] : 1;
  shape.channels = image[0];
  shape.in_height = image[1];
  shape.in_width = image[2];
  shape.kernel_height = options.kernel_size[0];
  shape.kernel_width = options.kernel_size[1];
  shape.stride_height = stride[0];
  shape.stride_width = stride[1];
  shape.padding_height = options.padding[0];
  shape.padding_width = options.padding[1];
  shape.dilation_height = options.dilation[0];
  shape.dilation_width = options.dilation[1];
  shape.out_height =
      output_size(op, "height", shape.in_height, shape.kernel_height, shape.stride_height,
                  shape.padding_height, shape.dilation_height, options.ceil_mode);
  shape.out_width = output_size(op, "width", shape.in_width, shape.kernel_width, shape.stride_width,
                                shape.padding_width, shape.dilation_width, options.ceil_mode);
  int64_t elements = 0;
  TORCH_CHECK_VALUE(
      checked_product({shape.batch, shape.channels, shape.out_height, shape.out_width, 8},
                      &elements),
      op, ": expected an output that fits 64-bit sizes, got [", shape.batch, ", ", shape.channels,
      ", ", shape.out_height, ", ", shape.out_width, "]");
  return shape;
}

void check_pool2d_dtype(const char* op, at::ScalarType dtype) {
  TORCH_CHECK(at::isFloatingType(dtype) || at::isIntegralType(dtype, /*includeBool=*/false), op,
              ": expected a tensor of floating point numbers or integers, got ", dtype);
}

void check_divisor_override(std::optional<int64_t> divisor_override) {
  TORCH_CHECK_VALUE(!divisor_override.has_value() || *divisor_override != 0,
                    "avg_pool2d: expected divisor_override other than zero, got 0");
}

void check_pool2d_tensor(const char* op, const char* name, const Tensor& tensor,
                         at::IntArrayRef expected, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected && tensor.scalar_type() == dtype, op, ": expected ",
                    name, " of shape ", expected, " and ", dtype, ", got ", tensor.sizes(), " and ",
                    tensor.scalar_type());
}

PoolOptions window_of(const AvgPoolOptions& o) {
  return {o.kernel_size, o.stride, o.padding, kNoDilation, o.ceil_mode};
}

at::MemoryFormat pool2d_format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Tensor new_pool2d_output(const Pool2dShape& shape, int64_t rank, const at::TensorOptions& options,
                         bool channels_last) {
  const auto sizes = output_sizes(shape);
  return empty_output(at::IntArrayRef(sizes).slice(4 - rank), options,
                      pool2d_format(channels_last));
}

void check_pool2d_output(const char* op, const char* name, const Tensor& tensor,
                         const Pool2dShape& shape, size_t rank, at::ScalarType dtype) {
  const auto sizes = output_sizes(shape);
  check_pool2d_tensor(op, name, tensor, at::IntArrayRef(sizes).slice(4 - rank), dtype);
}

bool pools_on_torch(const Tensor& input) {
  if (input.scalar_type() == at::kBFloat16)
    return !input.device().is_cpu() || pools_channels_last(input);
  return runs_on_torch_kernels(input.scalar_type());
}

bool pools_channels_last(const Tensor& input) {
  return input.dim() == 4 && input.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

}  // namespace fastconv::bindings
