// SPDX-License-Identifier: MIT
#include "cpu/pool2d/pool2d.h"
#include "cpu/pool2d/pool2d_dispatch.h"
#include "cpu/pool2d/pool2d_reference.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

int64_t bytes_moved(const Pool2dShape& s, bool offsets) {
  const int64_t offset_bytes = offset_type_of(s.taps()) == OffsetType::kUint8 ? 1 : 4;
  return sizeof(float) * (input_elements(s) + output_elements(s)) +
         (offsets ? offset_bytes * output_elements(s) : 0);
}

}  // namespace

template <>
void max_pool2d_forward(const MaxPool2dForward<double>& call) {
  record_kernel(KernelId::kMaxPool2dForward, "reference", Isa::kScalar);
  max_pool2d_forward_reference(call);
}

template <>
void max_pool2d_forward(const MaxPool2dForward<float>& original) {
  MaxPool2dForward<float> call = original;
  if (folds_to_rows(call.shape, call.channels_last, call.input_strides) &&
      call.output_strides.channel == 1)
    call.shape = folded_to_rows(call.shape);
  const Pool2dShape& s = call.shape;
  if (!fits_vector_kernels(s)) {
    record_kernel(KernelId::kMaxPool2dForward, "reference", Isa::kScalar);
    return max_pool2d_forward_reference(call);
  }
  const Isa isa = active_isa();
  const PoolKernel kernel = choose_kernel(s, call.channels_last);
  record_kernel(KernelId::kMaxPool2dForward, kernel_algorithm(kernel), isa);
  const Pool2dKernels& kernels = pool2d_kernels(isa);
  const auto run = kernels.max_forward[static_cast<int>(kernel)];
  const int64_t rows = s.batch * s.out_height * (call.channels_last ? 1 : s.channels);
  for_row_ranges(rows, output_elements(s) * s.taps(), bytes_moved(s, call.offsets != nullptr),
                 [&](RowRange range) {
                   run(call, range);
                   if (call.stream) kernels.fence();
                 });
}

template <>
void max_pool2d_backward(const MaxPool2dBackward<double>& call) {
  record_kernel(KernelId::kMaxPool2dBackward, "reference", Isa::kScalar);
  max_pool2d_backward_reference(call);
}

template <>
void max_pool2d_backward(const MaxPool2dBackward<float>& original) {
  MaxPool2dBackward<float> call = original;
  if (folds_to_rows(call.shape, call.channels_last, call.grad_input_strides) &&
      call.grad_output_strides.channel == 1 && call.offset_strides.channel == 1)
    call.shape = folded_to_rows(call.shape);
  const Pool2dShape& s = call.shape;
  if (!fits_vector_kernels(s)) {
    record_kernel(KernelId::kMaxPool2dBackward, "reference", Isa::kScalar);
    return max_pool2d_backward_reference(call);
  }
  const Isa isa = active_isa();
  const PoolKernel kernel = choose_kernel(s, call.channels_last);
  record_kernel(KernelId::kMaxPool2dBackward, kernel_algorithm(kernel), isa);
  const Pool2dKernels& kernels = pool2d_kernels(isa);
  run_backward(kernels, kernel, call, kernels.max_backward[static_cast<int>(kernel)],
               bytes_moved(s, true));
}

template <typename T>
void max_pool2d_gather(const MaxPool2dGather<T>& call) {
  max_pool2d_gather_reference(call);
}

template void max_pool2d_gather(const MaxPool2dGather<float>&);
template void max_pool2d_gather(const MaxPool2dGather<double>&);
template void max_pool2d_gather(const MaxPool2dGather<uint16_t>&);

void max_pool2d_indices(const MaxPool2dIndices& call) {
  max_pool2d_indices_reference(call);
}

}  // namespace fastconv::cpu
