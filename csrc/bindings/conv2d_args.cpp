// SPDX-License-Identifier: MIT
#include "bindings/conv2d_args.h"

#include <c10/util/Exception.h>

#include "common/checked.h"

namespace fastconv::bindings {
namespace {

void check_pair(at::IntArrayRef pair, const char* name, int64_t least) {
  TORCH_CHECK_VALUE(pair.size() == 1 || pair.size() == 2, "conv2d: expected ", name,
                    " of one or two integers, got ", pair);
  TORCH_CHECK_VALUE(pair.front() >= least && pair.back() >= least, "conv2d: expected ", name,
                    " of at least ", least, ", got ", pair);
}

// Output size along one dimension; throws when the kernel does not fit or a product overflows.
int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                    const char* name) {
  int64_t padded = 0, extent = 0;
  const bool fits = checked_mul(padding, 2, &padded) && checked_add(padded, size, &padded) &&
                    checked_mul(dilation, kernel - 1, &extent) && checked_add(extent, 1, &extent);
  TORCH_CHECK_VALUE(fits, "conv2d: expected sizes that fit 64-bit integers, got ", name, " ", size,
                    ", kernel ", kernel, ", padding ", padding, ", dilation ", dilation);
  TORCH_CHECK_VALUE(extent <= padded,
                    "conv2d: expected a kernel no larger than the padded input, "
                    "got ",
                    name, " ", padded, " (padding included) and kernel extent ", extent);
  return (padded - extent) / stride + 1;
}

void check_tensors(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK_VALUE(weight.dim() == 4,
                    "conv2d: expected weight of shape [out, in/groups, kh, kw], got ",
                    weight.sizes());
  const auto same_kind = [&](const Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "conv2d: expected ", name,
                " of the input's dtype ", input.scalar_type(), ", got ", tensor.scalar_type());
    TORCH_CHECK(tensor.device() == input.device(), "conv2d: expected ", name,
                " on the input's device ", input.device(), ", got ", tensor.device());
  };
  same_kind(weight, "weight");
  if (bias.defined()) {
    same_kind(bias, "bias");
    TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == weight.size(0),
                      "conv2d: expected bias of shape [", weight.size(0), "], got ", bias.sizes());
  }
  const auto dtype = input.scalar_type();
  TORCH_CHECK(at::isFloatingType(dtype) || at::isComplexType(dtype) ||
                  at::isIntegralType(dtype, /*includeBool=*/false),
              "conv2d: expected tensors of floating point, complex or integer numbers, got ",
              dtype);
}

}  // namespace

void check_conv2d_input_rank(const Tensor& input) {
  TORCH_CHECK_VALUE(input.dim() == 3 || input.dim() == 4,
                    "conv2d: expected input of shape [N, C, H, W] or [C, H, W], got ",
                    input.sizes());
}

Conv2dShape parse_conv2d_args(const Tensor& input, const Tensor& weight, const Tensor& bias,
                              const Conv2dOptions& options) {
  check_tensors(input, weight, bias);
  check_pair(options.stride, "stride", 1);
  check_pair(options.padding, "padding", 0);
  check_pair(options.dilation, "dilation", 1);
  const int64_t groups = options.groups;
  TORCH_CHECK_VALUE(groups >= 1, "conv2d: expected groups of at least 1, got ", groups);
  TORCH_CHECK_VALUE(weight.size(0) % groups == 0,
                    "conv2d: expected groups to divide the output channels, got groups ", groups,
                    " and ", weight.size(0), " output channels");
  TORCH_CHECK_VALUE(input.size(1) % groups == 0 && weight.size(1) == input.size(1) / groups,
                    "conv2d: expected weight of shape [out, ", input.size(1), "/", groups,
                    ", kh, kw] for an input of ", input.size(1), " channels and groups ", groups,
                    ", got ", weight.sizes());
  TORCH_CHECK_VALUE(weight.size(2) > 0 && weight.size(3) > 0,
                    "conv2d: expected a kernel of at least 1 x 1, got ", weight.sizes());

  Conv2dShape shape{};
  shape.batch = input.size(0);
  shape.in_channels = input.size(1);
  shape.in_height = input.size(2);
  shape.in_width = input.size(3);
  shape.out_channels = weight.size(0);
  shape.kernel_height = weight.size(2);
  shape.kernel_width = weight.size(3);
  shape.stride_height = options.stride.front();
  shape.stride_width = options.stride.back();
  shape.padding_height = options.padding.front();
  shape.padding_width = options.padding.back();
  shape.dilation_height = options.dilation.front();
  shape.dilation_width = options.dilation.back();
  shape.groups = groups;
  shape.out_height = output_size(shape.in_height, shape.kernel_height, shape.stride_height,
                                 shape.padding_height, shape.dilation_height, "height");
  shape.out_width = output_size(shape.in_width, shape.kernel_width, shape.stride_width,
                                shape.padding_width, shape.dilation_width, "width");
  int64_t elements = 0;
  TORCH_CHECK_VALUE(
      checked_product({shape.batch, shape.out_channels, shape.out_height, shape.out_width, 8},
                      &elements),
      "conv2d: expected an output that fits 64-bit sizes, got [", shape.batch, ", ",
      shape.out_channels, ", ", shape.out_height, ", ", shape.out_width, "]");
  return shape;
}

void check_conv2d_grad_output(const Tensor& grad_output, const Tensor& input,
                              const Conv2dShape& shape) {
  const int64_t expected[] = {shape.batch, shape.out_channels, shape.out_height, shape.out_width};
  TORCH_CHECK_VALUE(grad_output.sizes() == at::IntArrayRef(expected) &&
                        grad_output.scalar_type() == input.scalar_type(),
                    "conv2d: expected grad_output of shape ", at::IntArrayRef(expected), " and ",
                    input.scalar_type(), ", got ", grad_output.sizes(), " and ",
                    grad_output.scalar_type());
}

at::MemoryFormat conv2d_memory_format(const Tensor& input, const Tensor& weight) {
  const bool channels_last = input.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
                             weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace fastconv::bindings
