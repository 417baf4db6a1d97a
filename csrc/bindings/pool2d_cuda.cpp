// SPDX-License-Identifier: MIT
// Max and average pooling, forward and backward, on CUDA tensors: check, allocate, launch. All four
// element types run on kernels of ours; tensors that are not dense in the layout of the call are
// copied first.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "bindings/cuda_call.h"
#include "bindings/outputs.h"
#include "bindings/pool2d_args.h"
#include "cuda/pool2d/pool2d.h"

namespace fastconv::bindings {
namespace {

constexpr const char* kMax = "max_pool2d";
constexpr const char* kAvg = "avg_pool2d";

cuda::Pool2dElement element_of(const char* op, at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return cuda::Pool2dElement::kFloat64;
    case at::kBFloat16:
      return cuda::Pool2dElement::kBFloat16;
    case at::kHalf:
      return cuda::Pool2dElement::kFloat16;
    case at::kFloat:
      return cuda::Pool2dElement::kFloat32;
    default:
      TORCH_CHECK(false, op, ": expected a float32, float64, bfloat16 or float16 CUDA tensor, got ",
                  dtype);
  }
}

cuda::Pool2dCall call_of(const char* op, const Pool2dShape& shape, bool channels_last,
                         const Tensor& values) {
  return {shape, channels_last, element_of(op, values.scalar_type())};
}

// The tensor in the layout of the call: a 3-D one is never channels_last.
Tensor dense(const Tensor& t, bool channels_last) {
  return t.contiguous(pool2d_format(channels_last));
}

at::ScalarType offset_dtype(const Pool2dShape& shape) {
  return shape.taps() <= cuda::kMaxByteTaps ? at::kByte : at::kInt;
}

// `offsets` may be undefined: an inference pass records none.
void run_max_forward(const CudaCall& cuda_call, const Pool2dShape& shape, bool channels_last,
                     const Tensor& input, const Tensor& output, const Tensor& offsets) {
  if (output.numel() == 0) return;
  const Tensor x = dense(input, channels_last);
  cuda_call.check(cuda::launch_max_pool2d_forward(
      {call_of(kMax, shape, channels_last, x), x.const_data_ptr(), output.mutable_data_ptr(),
       offsets.defined() ? offsets.mutable_data_ptr() : nullptr},
      cuda_call.stream()));
}

Tensor max_pool2d_cuda(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  check_pool2d_dtype(kMax, input.scalar_type());
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input.sizes(), {kernel_size, stride, padding, dilation, ceil_mode});
  const CudaCall cuda_call(kMax, {{"input", input}});
  const bool channels_last = pools_channels_last(input);
  const Tensor output = new_pool2d_output(shape, input.dim(), input.options(), channels_last);
  run_max_forward(cuda_call, shape, channels_last, input, output, Tensor());
  return output;
}

Tensor2 max_pool2d_training_cuda(const Tensor& input, at::IntArrayRef kernel_size,
                                 at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, bool ceil_mode) {
  check_pool2d_dtype(kMax, input.scalar_type());
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input.sizes(), {kernel_size, stride, padding, dilation, ceil_mode});
  const CudaCall cuda_call(kMax, {{"input", input}});
  const bool channels_last = pools_channels_last(input);
  const Tensor output = new_pool2d_output(shape, input.dim(), input.options(), channels_last);
  const Tensor offsets = new_pool2d_output(
      shape, input.dim(), input.options().dtype(offset_dtype(shape)), channels_last);
  run_max_forward(cuda_call, shape, channels_last, input, output, offsets);
  return {output, offsets};
}

Tensor max_pool2d_indices_cuda(const Tensor& offsets, at::IntArrayRef input_size,
                               at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input_size, {kernel_size, stride, padding, dilation, ceil_mode});
  check_pool2d_output(kMax, "offsets", offsets, shape, input_size.size(), offset_dtype(shape));
  const CudaCall cuda_call(kMax, {{"offsets", offsets}});
  const bool channels_last = pools_channels_last(offsets);
  const Tensor taps = dense(offsets, channels_last);
  const Tensor indices =
      new_pool2d_output(shape, offsets.dim(), offsets.options().dtype(at::kLong), channels_last);
  cuda_call.check(cuda::launch_max_pool2d_indices(
      {shape, channels_last, taps.const_data_ptr(), indices.mutable_data_ptr<int64_t>()},
      cuda_call.stream()));
  return indices;
}

Tensor2 max_pool2d_with_indices_cuda(const Tensor& input, at::IntArrayRef kernel_size,
                                     at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation, bool ceil_mode) {
  const auto [output, offsets] =
      max_pool2d_training_cuda(input, kernel_size, stride, padding, dilation, ceil_mode);
  return {output, max_pool2d_indices_cuda(offsets, input.sizes(), kernel_size, stride, padding,
                                          dilation, ceil_mode)};
}

Tensor max_pool2d_backward_cuda(const Tensor& grad_output, const Tensor& offsets,
                                at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                                at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation, bool ceil_mode, bool channels_last) {
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input_size, {kernel_size, stride, padding, dilation, ceil_mode});
  check_pool2d_dtype(kMax, grad_output.scalar_type());
  check_pool2d_output(kMax, "grad_output", grad_output, shape, input_size.size(),
                      grad_output.scalar_type());
  check_pool2d_output(kMax, "offsets", offsets, shape, input_size.size(), offset_dtype(shape));
  const CudaCall cuda_call(kMax, {{"grad_output", grad_output}, {"offsets", offsets}});
  const Tensor grad_input =
      empty_output(input_size, grad_output.options(), pool2d_format(channels_last));
  const Tensor go = dense(grad_output, channels_last);
  const Tensor taps = dense(offsets, channels_last);
  cuda_call.check(cuda::launch_max_pool2d_backward(
      {call_of(kMax, shape, channels_last, go), go.const_data_ptr(), taps.const_data_ptr(),
       grad_input.mutable_data_ptr()},
      cuda_call.stream()));
  return grad_input;
}

Tensor max_pool2d_gather_cuda(const Tensor& source, const Tensor& offsets,
                              at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Pool2dShape shape =
      parse_pool2d_args(kMax, source.sizes(), {kernel_size, stride, padding, dilation, ceil_mode});
  check_pool2d_dtype(kMax, source.scalar_type());
  check_pool2d_output(kMax, "offsets", offsets, shape, source.dim(), offset_dtype(shape));
  const CudaCall cuda_call(kMax, {{"source", source}, {"offsets", offsets}});
  const bool channels_last = pools_channels_last(offsets);
  const Tensor x = dense(source, channels_last);
  const Tensor taps = dense(offsets, channels_last);
  const Tensor output = new_pool2d_output(shape, source.dim(), source.options(), channels_last);
  cuda_call.check(
      cuda::launch_max_pool2d_gather({call_of(kMax, shape, channels_last, x), x.const_data_ptr(),
                                      taps.const_data_ptr(), output.mutable_data_ptr()},
                                     cuda_call.stream()));
  return output;
}

Tensor avg_pool2d_cuda(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                       std::optional<int64_t> divisor_override) {
  check_pool2d_dtype(kAvg, input.scalar_type());
  check_divisor_override(divisor_override);
  const Pool2dShape shape = parse_pool2d_args(
      kAvg, input.sizes(),
      window_of({kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override}));
  const CudaCall cuda_call(kAvg, {{"input", input}});
  const bool channels_last = pools_channels_last(input);
  const Tensor output = new_pool2d_output(shape, input.dim(), input.options(), channels_last);
  const Tensor x = dense(input, channels_last);
  cuda_call.check(
      cuda::launch_avg_pool2d_forward({call_of(kAvg, shape, channels_last, x),
                                       {count_include_pad, divisor_override.value_or(0)},
                                       x.const_data_ptr(),
                                       output.mutable_data_ptr()},
                                      cuda_call.stream()));
  return output;
}

Tensor avg_pool2d_backward_cuda(const Tensor& grad_output, at::IntArrayRef input_size,
                                at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                std::optional<int64_t> divisor_override, bool channels_last) {
  check_divisor_override(divisor_override);
  const Pool2dShape shape = parse_pool2d_args(
      kAvg, input_size,
      window_of({kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override}));
  check_pool2d_dtype(kAvg, grad_output.scalar_type());
  check_pool2d_output(kAvg, "grad_output", grad_output, shape, input_size.size(),
                      grad_output.scalar_type());
  const CudaCall cuda_call(kAvg, {{"grad_output", grad_output}});
  const Tensor grad_input =
      empty_output(input_size, grad_output.options(), pool2d_format(channels_last));
  const Tensor go = dense(grad_output, channels_last);
  cuda_call.check(
      cuda::launch_avg_pool2d_backward({call_of(kAvg, shape, channels_last, go),
                                        {count_include_pad, divisor_override.value_or(0)},
                                        go.const_data_ptr(),
                                        grad_input.mutable_data_ptr()},
                                       cuda_call.stream()));
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("max_pool2d", &max_pool2d_cuda);
  m.impl("max_pool2d_with_indices", &max_pool2d_with_indices_cuda);
  m.impl("_max_pool2d_training", &max_pool2d_training_cuda);
  m.impl("_max_pool2d_indices", &max_pool2d_indices_cuda);
  m.impl("_max_pool2d_backward", &max_pool2d_backward_cuda);
  m.impl("_max_pool2d_gather", &max_pool2d_gather_cuda);
  m.impl("avg_pool2d", &avg_pool2d_cuda);
  m.impl("_avg_pool2d_backward", &avg_pool2d_backward_cuda);
}

}  // namespace fastconv::bindings
