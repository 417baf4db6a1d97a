// SPDX-License-Identifier: MIT
#include "cpu/pool2d/pool2d.h"
#include "cpu/pool2d/pool2d_dispatch.h"
#include "cpu/pool2d/pool2d_reference.h"
#include "cpu/pool2d/pool2d_window.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

int64_t bytes_moved(const Pool2dShape& s) {
  return sizeof(float) * (input_elements(s) + output_elements(s));
}

// True when every window counts the same number of elements along one dimension; only the first and
// the last windows can be cut.
bool same_count_everywhere(int64_t size, int64_t outputs, int64_t kernel, int64_t stride,
                           int64_t padding, bool count_include_pad) {
  const int64_t last = (outputs - 1) * stride - padding;
  return counted_taps(-padding, kernel, size, padding, count_include_pad) == kernel &&
         counted_taps(last, kernel, size, padding, count_include_pad) == kernel;
}

// The divisor of all windows, or 0 when they differ.
int64_t uniform_divisor(const Pool2dShape& s, const AvgDivisor& d) {
  if (d.divisor_override != 0) return d.divisor_override;
  const bool same = same_count_everywhere(s.in_height, s.out_height, s.kernel_height,
                                          s.stride_height, s.padding_height, d.count_include_pad) &&
                    same_count_everywhere(s.in_width, s.out_width, s.kernel_width, s.stride_width,
                                          s.padding_width, d.count_include_pad);
  return same ? s.taps() : 0;
}

// scaled = grad_output / divisor of each window, dense in the layout of grad_output.
AvgGradUniform divide_first(const AvgPool2dBackward<float>& call, float* scaled) {
  const Pool2dShape& s = call.shape;
  const Strides4 strides = call.channels_last
                               ? channels_last_strides(s.channels, s.out_height, s.out_width)
                               : contiguous_strides(s.channels, s.out_height, s.out_width);
  for_row_ranges(s.batch * s.channels, 0, 2 * sizeof(float) * output_elements(s),
                 [&](RowRange range) {
                   for (int64_t plane = range.begin; plane < range.end; ++plane)
                     divide_plane(call, plane, scaled, strides);
                 });
  return {s, 1.0f, scaled, strides, call.grad_input, call.grad_input_strides, call.stream, 0};
}

}  // namespace

template <>
void avg_pool2d_forward(const AvgPool2dForward<double>& call) {
  record_kernel(KernelId::kAvgPool2dForward, "reference", Isa::kScalar);
  avg_pool2d_forward_reference(call);
}

template <>
void avg_pool2d_forward(const AvgPool2dForward<float>& original) {
  AvgPool2dForward<float> call = original;
  if (folds_to_rows(call.shape, call.channels_last, call.input_strides) &&
      call.output_strides.channel == 1)
    call.shape = folded_to_rows(call.shape);
  const Pool2dShape& s = call.shape;
  if (!fits_vector_kernels(s)) {
    record_kernel(KernelId::kAvgPool2dForward, "reference", Isa::kScalar);
    return avg_pool2d_forward_reference(call);
  }
  const Isa isa = active_isa();
  const PoolKernel kernel = choose_kernel(s, call.channels_last);
  record_kernel(KernelId::kAvgPool2dForward, kernel_algorithm(kernel), isa);
  const Pool2dKernels& kernels = pool2d_kernels(isa);
  const auto run = kernels.avg_forward[static_cast<int>(kernel)];
  const int64_t rows = s.batch * s.out_height * (call.channels_last ? 1 : s.channels);
  for_row_ranges(rows, output_elements(s) * s.taps(), bytes_moved(s), [&](RowRange range) {
    run(call, range);
    if (call.stream) kernels.fence();
  });
}

int64_t avg_pool2d_backward_scratch(const Pool2dShape& shape, const AvgDivisor& divisor) {
  return uniform_divisor(shape, divisor) == 0 ? output_elements(shape) : 0;
}

template <>
void avg_pool2d_backward(const AvgPool2dBackward<double>& call, float* /*scratch*/) {
  record_kernel(KernelId::kAvgPool2dBackward, "reference", Isa::kScalar);
  avg_pool2d_backward_reference(call);
}

template <>
void avg_pool2d_backward(const AvgPool2dBackward<float>& original, float* scratch) {
  AvgPool2dBackward<float> call = original;
  if (folds_to_rows(call.shape, call.channels_last, call.grad_input_strides) &&
      call.grad_output_strides.channel == 1)
    call.shape = folded_to_rows(call.shape);
  const Pool2dShape& s = call.shape;
  if (!fits_vector_kernels(s)) {
    record_kernel(KernelId::kAvgPool2dBackward, "reference", Isa::kScalar);
    return avg_pool2d_backward_reference(call);
  }
  const Isa isa = active_isa();
  const PoolKernel kernel = choose_kernel(s, call.channels_last);
  record_kernel(KernelId::kAvgPool2dBackward, kernel_algorithm(kernel), isa);
  const Pool2dKernels& kernels = pool2d_kernels(isa);
  const int64_t divisor = uniform_divisor(s, call.divisor);
  const AvgGradUniform uniform = divisor == 0 ? divide_first(call, scratch)
                                              : AvgGradUniform{s,
                                                               static_cast<float>(divisor),
                                                               call.grad_output,
                                                               call.grad_output_strides,
                                                               call.grad_input,
                                                               call.grad_input_strides,
                                                               call.stream,
                                                               0};
  run_backward(kernels, kernel, uniform, kernels.avg_backward[static_cast<int>(kernel)],
               bytes_moved(s));
}

}  // namespace fastconv::cpu
