// SPDX-License-Identifier: MIT
// Max and average pooling, forward and backward, on CPU tensors: check, allocate, call the kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "bindings/element_type.h"
#include "bindings/outputs.h"
#include "bindings/pool2d_args.h"
#include "bindings/scratch.h"
#include "bindings/strides.h"
#include "cpu/pool2d/pool2d.h"

namespace fastconv::bindings {
namespace {

constexpr const char* kMax = "max_pool2d";
constexpr const char* kAvg = "avg_pool2d";

Tensor batched(const Tensor& t) {
  return t.dim() == 4 ? t : t.unsqueeze(0);
}

// The kernels read vectors of columns, or of channels; a tensor that lacks them is copied.
Tensor readable(const Tensor& t, bool channels_last) {
  const int64_t dimension = channels_last ? 1 : 3;
  if (t.stride(dimension) == 1 || t.size(dimension) == 1) return t;
  return t.contiguous(pool2d_format(channels_last));
}

at::ScalarType offset_dtype(const Pool2dShape& shape) {
  return cpu::offset_type_of(shape.taps()) == cpu::OffsetType::kUint8 ? at::kByte : at::kInt;
}

// The dtype that goes with the gradients of an output of ours.
at::ScalarType pooled_dtype(const Tensor& grad_output) {
  const at::ScalarType dtype = grad_output.scalar_type();
  return dtype == at::kDouble || dtype == at::kBFloat16 ? dtype : at::kFloat;
}

bool is_bfloat16(const Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16;
}

const uint16_t* bits_of(const Tensor& bfloat16) {
  return static_cast<const uint16_t*>(bfloat16.const_data_ptr());
}

uint16_t* mutable_bits_of(const Tensor& bfloat16) {
  return static_cast<uint16_t*>(bfloat16.mutable_data_ptr());
}

// The kernels of bfloat16 know dense tensors only; autograd sends no others.
void refuse_channels_last(const char* op, const Tensor& grad_output, bool channels_last) {
  TORCH_CHECK_VALUE(!is_bfloat16(grad_output) || !channels_last, op,
                    ": expected a bfloat16 gradient in contiguous layout, got channels_last");
}

// `offsets` may be undefined: an inference pass records none.
void run_max_forward(const Pool2dShape& shape, bool channels_last, const Tensor& input,
                     const Tensor& output, const Tensor& offsets) {
  if (output.numel() == 0) return;
  void* taps = offsets.defined() ? offsets.mutable_data_ptr() : nullptr;
  if (is_bfloat16(input)) {
    const Tensor x = input.contiguous();
    const Scratch scratch(cpu::pool2d_bfloat16_scratch(shape));
    return cpu::max_pool2d_forward(
        {shape, false, bits_of(x), {}, mutable_bits_of(output), {}, taps}, scratch.data());
  }
  const Tensor x = readable(batched(input), channels_last);
  const Strides4 out_strides = strides_of(batched(output));
  dispatch_float_or_double(x, [&](auto type) {
    using T = decltype(type);
    cpu::max_pool2d_forward<T>({shape, channels_last, x.const_data_ptr<T>(), strides_of(x),
                                output.mutable_data_ptr<T>(), out_strides, taps,
                                cpu::exceeds_caches(shape)});
  });
}

Tensor max_pool2d_cpu(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  check_pool2d_dtype(kMax, input.scalar_type());
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input.sizes(), {kernel_size, stride, padding, dilation, ceil_mode});
  if (pools_on_torch(input))
    return at::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  const bool channels_last = pools_channels_last(input);
  const Tensor output = new_pool2d_output(shape, input.dim(), input.options(), channels_last);
  run_max_forward(shape, channels_last, input, output, Tensor());
  return output;
}

Tensor2 max_pool2d_training_cpu(const Tensor& input, at::IntArrayRef kernel_size,
                                at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation, bool ceil_mode) {
  check_pool2d_dtype(kMax, input.scalar_type());
  TORCH_CHECK(!pools_on_torch(input),
              "max_pool2d: expected a float32 or float64 tensor, or a contiguous bfloat16 one, for "
              "a pass that records offsets, got ",
              input.scalar_type());
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input.sizes(), {kernel_size, stride, padding, dilation, ceil_mode});
  const bool channels_last = pools_channels_last(input);
  const Tensor output = new_pool2d_output(shape, input.dim(), input.options(), channels_last);
  const Tensor offsets = new_pool2d_output(
      shape, input.dim(), input.options().dtype(offset_dtype(shape)), channels_last);
  run_max_forward(shape, channels_last, input, output, offsets);
  return {output, offsets};
}

Tensor max_pool2d_indices_cpu(const Tensor& offsets, at::IntArrayRef input_size,
                              at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input_size, {kernel_size, stride, padding, dilation, ceil_mode});
  check_pool2d_output(kMax, "offsets", offsets, shape, input_size.size(), offset_dtype(shape));
  const Tensor indices = at::empty_like(offsets, offsets.options().dtype(at::kLong));
  if (indices.numel() == 0) return indices;
  cpu::max_pool2d_indices({shape, offsets.const_data_ptr(), strides_of(batched(offsets)),
                           indices.mutable_data_ptr<int64_t>(), strides_of(batched(indices))});
  return indices;
}

Tensor2 max_pool2d_with_indices_cpu(const Tensor& input, at::IntArrayRef kernel_size,
                                    at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation, bool ceil_mode) {
  const PoolOptions options{kernel_size, stride, padding, dilation, ceil_mode};
  check_pool2d_dtype(kMax, input.scalar_type());
  if (pools_on_torch(input)) {
    parse_pool2d_args(kMax, input.sizes(), options);
    return at::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  const auto [output, offsets] =
      max_pool2d_training_cpu(input, kernel_size, stride, padding, dilation, ceil_mode);
  return {output, max_pool2d_indices_cpu(offsets, input.sizes(), kernel_size, stride, padding,
                                         dilation, ceil_mode)};
}

Tensor max_pool2d_backward_cpu(const Tensor& grad_output, const Tensor& offsets,
                               at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                               at::IntArrayRef stride, at::IntArrayRef padding,
                               at::IntArrayRef dilation, bool ceil_mode, bool channels_last) {
  const Pool2dShape shape =
      parse_pool2d_args(kMax, input_size, {kernel_size, stride, padding, dilation, ceil_mode});
  const at::ScalarType dtype = pooled_dtype(grad_output);
  refuse_channels_last(kMax, grad_output, channels_last);
  check_pool2d_output(kMax, "grad_output", grad_output, shape, input_size.size(), dtype);
  check_pool2d_output(kMax, "offsets", offsets, shape, input_size.size(), offset_dtype(shape));
  const Tensor grad_input =
      empty_output(input_size, grad_output.options(), pool2d_format(channels_last));
  if (grad_input.numel() == 0) return grad_input;
  if (is_bfloat16(grad_output)) {
    const Tensor go = grad_output.contiguous(), taps = offsets.contiguous();
    const Scratch scratch(cpu::pool2d_bfloat16_scratch(shape));
    cpu::max_pool2d_backward(
        {shape, false, bits_of(go), {}, taps.const_data_ptr(), {}, mutable_bits_of(grad_input), {}},
        scratch.data());
    return grad_input;
  }
  const Tensor go = readable(batched(grad_output), channels_last);
  const Tensor taps = readable(batched(offsets), channels_last);
  const Strides4 gi_strides = strides_of(batched(grad_input));
  dispatch_float_or_double(go, [&](auto type) {
    using T = decltype(type);
    cpu::max_pool2d_backward<T>({shape, channels_last, go.const_data_ptr<T>(), strides_of(go),
                                 taps.const_data_ptr(), strides_of(taps),
                                 grad_input.mutable_data_ptr<T>(), gi_strides,
                                 cpu::exceeds_caches(shape)});
  });
  return grad_input;
}

Tensor max_pool2d_gather_cpu(const Tensor& source, const Tensor& offsets,
                             at::IntArrayRef kernel_size, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Pool2dShape shape =
      parse_pool2d_args(kMax, source.sizes(), {kernel_size, stride, padding, dilation, ceil_mode});
  const at::ScalarType dtype = pooled_dtype(source);
  check_pool2d_tensor(kMax, "source", source, source.sizes(), dtype);
  check_pool2d_output(kMax, "offsets", offsets, shape, source.dim(), offset_dtype(shape));
  const Tensor output = at::empty_like(offsets, source.options());
  if (output.numel() == 0) return output;
  const Tensor x = batched(source);
  if (is_bfloat16(source)) {
    cpu::max_pool2d_gather<uint16_t>({shape, bits_of(x), strides_of(x), offsets.const_data_ptr(),
                                      strides_of(batched(offsets)), mutable_bits_of(output),
                                      strides_of(batched(output))});
    return output;
  }
  dispatch_float_or_double(x, [&](auto type) {
    using T = decltype(type);
    cpu::max_pool2d_gather<T>({shape, x.const_data_ptr<T>(), strides_of(x),
                               offsets.const_data_ptr(), strides_of(batched(offsets)),
                               output.mutable_data_ptr<T>(), strides_of(batched(output))});
  });
  return output;
}

Tensor avg_pool2d_cpu(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                      std::optional<int64_t> divisor_override) {
  check_pool2d_dtype(kAvg, input.scalar_type());
  check_divisor_override(divisor_override);
  const Pool2dShape shape = parse_pool2d_args(
      kAvg, input.sizes(),
      window_of({kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override}));
  if (pools_on_torch(input))
    return at::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                          divisor_override);
  const bool channels_last = pools_channels_last(input);
  const Tensor output = new_pool2d_output(shape, input.dim(), input.options(), channels_last);
  if (output.numel() == 0) return output;
  const cpu::AvgDivisor divisor{count_include_pad, divisor_override.value_or(0)};
  if (is_bfloat16(input)) {
    const Tensor x = input.contiguous();
    const Scratch scratch(cpu::pool2d_bfloat16_scratch(shape));
    cpu::avg_pool2d_forward({shape, false, divisor, bits_of(x), {}, mutable_bits_of(output), {}},
                            scratch.data());
    return output;
  }
  const Tensor x = readable(batched(input), channels_last);
  const Strides4 out_strides = strides_of(batched(output));
  dispatch_float_or_double(x, [&](auto type) {
    using T = decltype(type);
    cpu::avg_pool2d_forward<T>({shape, channels_last, divisor, x.const_data_ptr<T>(), strides_of(x),
                                output.mutable_data_ptr<T>(), out_strides,
                                cpu::exceeds_caches(shape)});
  });
  return output;
}

Tensor avg_pool2d_backward_cpu(const Tensor& grad_output, at::IntArrayRef input_size,
                               at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                               std::optional<int64_t> divisor_override, bool channels_last) {
  check_divisor_override(divisor_override);
  const Pool2dShape shape = parse_pool2d_args(
      kAvg, input_size,
      window_of({kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override}));
  const at::ScalarType dtype = pooled_dtype(grad_output);
  refuse_channels_last(kAvg, grad_output, channels_last);
  check_pool2d_output(kAvg, "grad_output", grad_output, shape, input_size.size(), dtype);
  const Tensor grad_input =
      empty_output(input_size, grad_output.options(), pool2d_format(channels_last));
  if (grad_input.numel() == 0) return grad_input;
  const cpu::AvgDivisor divisor{count_include_pad, divisor_override.value_or(0)};
  if (is_bfloat16(grad_output)) {
    const Tensor go = grad_output.contiguous();
    const Scratch scratch(cpu::pool2d_bfloat16_scratch(shape));
    cpu::avg_pool2d_backward(
        {shape, false, divisor, bits_of(go), {}, mutable_bits_of(grad_input), {}}, scratch.data());
    return grad_input;
  }
  const Tensor go = readable(batched(grad_output), channels_last);
  const Strides4 gi_strides = strides_of(batched(grad_input));
  const Scratch scratch(cpu::avg_pool2d_backward_scratch(shape, divisor));
  dispatch_float_or_double(go, [&](auto type) {
    using T = decltype(type);
    cpu::avg_pool2d_backward<T>(
        {shape, channels_last, divisor, go.const_data_ptr<T>(), strides_of(go),
         grad_input.mutable_data_ptr<T>(), gi_strides, cpu::exceeds_caches(shape)},
        scratch.data());
  });
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("max_pool2d", &max_pool2d_cpu);
  m.impl("max_pool2d_with_indices", &max_pool2d_with_indices_cpu);
  m.impl("_max_pool2d_training", &max_pool2d_training_cpu);
  m.impl("_max_pool2d_indices", &max_pool2d_indices_cpu);
  m.impl("_max_pool2d_backward", &max_pool2d_backward_cpu);
  m.impl("_max_pool2d_gather", &max_pool2d_gather_cpu);
  m.impl("avg_pool2d", &avg_pool2d_cpu);
  m.impl("_avg_pool2d_backward", &avg_pool2d_backward_cpu);
}

}  // namespace fastconv::bindings
