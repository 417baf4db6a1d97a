// SPDX-License-Identifier: MIT
// fastconv::conv2d and its backward on CPU tensors: check, allocate, call the kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "bindings/conv2d_args.h"
#include "bindings/ops.h"
#include "bindings/outputs.h"
#include "bindings/scratch.h"
#include "bindings/strides.h"
#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/conv2d_reference.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/trace.h"

namespace fastconv::bindings {
namespace {

// The kernels read rows or channels in vectors; a tensor that has neither contiguous is copied.
Tensor readable(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.stride(1) == 1 ? tensor : tensor.contiguous();
}

// Shapes for which torch's operator was measured to be the faster one and therefore serves the
// call; the runs are in benchmarks/results. A forced instruction set always means fastconv's
// kernels.
bool torch_is_faster(const Conv2dShape& s, bool forward) {
  constexpr int64_t kTwoVectors = 32;
  constexpr int64_t kManyTaps = 4 * 4;  // whose gradients torch computes slowly
  const bool depthwise = s.groups > 1 && s.groups == s.in_channels && s.groups == s.out_channels;
  return !cpu::isa_is_forced() && depthwise && s.out_width < kTwoVectors &&
         (forward || s.taps() < kManyTaps);
}

bool is_channels_last(const Tensor& weight) {
  return !weight.is_contiguous() && weight.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// Gives the call its weights in a layout that its plan takes; the result owns them.
template <typename Call>
Tensor set_weight(const cpu::Conv2dPlan& plan, const Tensor& weight, Call* call) {
  call->weight_channels_last = plan.takes_channels_last && is_channels_last(weight);
  const Tensor w = call->weight_channels_last ? weight : weight.contiguous();
  call->weight = w.template const_data_ptr<float>();
  return w;
}

constexpr const char* kTorch = "torch";  // the algorithm's name in the record of what ran

// `kernels`: those the call would run; torch serves all of them or none.
bool serve_with_torch(const Conv2dShape& shape, const Tensor& input, const Tensor& weight,
                      std::initializer_list<cpu::KernelId> kernels) {
  if (runs_on_torch_kernels(input.scalar_type()) || weight.numel() == 0) return true;
  if (input.scalar_type() != at::kFloat) return false;
  const bool forward = *kernels.begin() == cpu::KernelId::kConv2dForward;
  for (cpu::KernelId kernel : kernels)
    if (const char* forced = cpu::forced_algorithm(kernel); forced != nullptr)
      return !cpu::is_other(forced, kTorch);
  return torch_is_faster(shape, forward);
}

void check_possible(const cpu::Conv2dPlan& plan, cpu::KernelId kernel, const Conv2dShape& shape) {
  TORCH_CHECK_VALUE(plan.possible, "conv2d: expected a shape that the algorithm '", plan.forced,
                    "' forced for ", cpu::kernel_name(kernel), " can serve, got a ",
                    shape.kernel_height, "x", shape.kernel_width, " kernel, ", shape.in_channels,
                    " to ", shape.out_channels, " channels in ", shape.groups, " groups on a ",
                    shape.in_height, "x", shape.in_width, " input");
}

Tensor forward_4d(const Tensor& input, const Tensor& weight, const Tensor& bias,
                  const Conv2dOptions& options) {
  const Conv2dShape shape = parse_conv2d_args(input, weight, bias, options);
  if (serve_with_torch(shape, input, weight, {cpu::KernelId::kConv2dForward})) {
    cpu::record_kernel(cpu::KernelId::kConv2dForward, kTorch, cpu::active_isa());
    return at::conv2d(input, weight, bias, options.stride, options.padding, options.dilation,
                      options.groups);
  }
  Tensor output = empty_output({shape.batch, shape.out_channels, shape.out_height, shape.out_width},
                               input.options(), conv2d_memory_format(input, weight));
  if (output.numel() == 0) return output;
  const Tensor x = readable(input);
  const Tensor b = bias.defined() ? bias.contiguous() : bias;
  if (input.scalar_type() == at::kDouble) {
    const Tensor w = weight.contiguous();
    cpu::conv2d_forward_reference(shape, x.const_data_ptr<double>(), strides_of(x),
                                  w.const_data_ptr<double>(),
                                  b.defined() ? b.const_data_ptr<double>() : nullptr,
                                  output.mutable_data_ptr<double>(), strides_of(output));
    return output;
  }
  cpu::Conv2dForward call{shape,
                          x.const_data_ptr<float>(),
                          strides_of(x),
                          nullptr,
                          b.defined() ? b.const_data_ptr<float>() : nullptr,
                          output.mutable_data_ptr<float>(),
                          strides_of(output)};
  const cpu::Conv2dPlan plan = cpu::plan_conv2d_forward(call);
  check_possible(plan, cpu::KernelId::kConv2dForward, shape);
  const Tensor w = set_weight(plan, weight, &call);
  const Scratch scratch(plan.scratch_floats);
  cpu::conv2d_forward(plan, call, scratch.data());
  return output;
}

Tensor grad_input_4d(const Conv2dShape& shape, const Tensor& grad_output, const Tensor& input,
                     const Tensor& weight) {
  Tensor grad_input =
      empty_output(input.sizes(), input.options(), conv2d_memory_format(input, weight));
  if (grad_input.numel() == 0) return grad_input;
  if (input.scalar_type() == at::kDouble) {
    const Tensor w = weight.contiguous();
    cpu::conv2d_grad_input_reference(shape, grad_output.const_data_ptr<double>(),
                                     strides_of(grad_output), w.const_data_ptr<double>(),
                                     grad_input.mutable_data_ptr<double>(), strides_of(grad_input));
    return grad_input;
  }
  cpu::Conv2dGradInput call{shape,   grad_output.const_data_ptr<float>(),  strides_of(grad_output),
                            nullptr, grad_input.mutable_data_ptr<float>(), strides_of(grad_input)};
  const cpu::Conv2dPlan plan = cpu::plan_conv2d_grad_input(call);
  check_possible(plan, cpu::KernelId::kConv2dGradInput, shape);
  const Tensor w = set_weight(plan, weight, &call);
  const Scratch scratch(plan.scratch_floats);
  cpu::conv2d_grad_input(plan, call, scratch.data());
  return grad_input;
}

// Returns (grad_weight, grad_bias); the second is undefined unless `with_bias`.
std::pair<Tensor, Tensor> grad_weight_4d(const Conv2dShape& shape, const Tensor& grad_output,
                                         const Tensor& input, const Tensor& weight,
                                         bool with_bias) {
  Tensor grad_weight = at::empty(weight.sizes(), weight.options(), at::MemoryFormat::Contiguous);
  Tensor grad_bias = with_bias ? at::empty({shape.out_channels}, weight.options()) : Tensor();
  if (grad_output.numel() == 0) {
    grad_weight.zero_();
    if (with_bias) grad_bias.zero_();
    return {grad_weight, grad_bias};
  }
  const Tensor x = readable(input);
  if (input.scalar_type() == at::kDouble) {
    cpu::conv2d_grad_weight_reference(shape, grad_output.const_data_ptr<double>(),
                                      strides_of(grad_output), x.const_data_ptr<double>(),
                                      strides_of(x), grad_weight.mutable_data_ptr<double>(),
                                      with_bias ? grad_bias.mutable_data_ptr<double>() : nullptr);
  } else {
    cpu::Conv2dGradWeight call{shape,
                               grad_output.const_data_ptr<float>(),
                               strides_of(grad_output),
                               x.const_data_ptr<float>(),
                               strides_of(x),
                               grad_weight.mutable_data_ptr<float>(),
                               with_bias ? grad_bias.mutable_data_ptr<float>() : nullptr};
    const cpu::Conv2dPlan plan = cpu::plan_conv2d_grad_weight(call);
    check_possible(plan, cpu::KernelId::kConv2dGradWeight, shape);
    if (plan.takes_channels_last && is_channels_last(weight)) {
      grad_weight = at::empty(weight.sizes(), weight.options(), at::MemoryFormat::ChannelsLast);
      call.grad_weight = grad_weight.mutable_data_ptr<float>();
      call.weight_channels_last = true;
    }
    const Scratch scratch(plan.scratch_floats);
    cpu::conv2d_grad_weight(plan, call, scratch.data());
  }
  return {grad_weight.contiguous(weight.suggest_memory_format()), grad_bias};
}

Tensor3 backward_4d(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                    const Conv2dOptions& options, std::array<bool, 3> output_mask) {
  const Conv2dShape shape = parse_conv2d_args(input, weight, Tensor(), options);
  if (serve_with_torch(shape, input, weight,
                       {cpu::KernelId::kConv2dGradInput, cpu::KernelId::kConv2dGradWeight})) {
    if (output_mask[0])
      cpu::record_kernel(cpu::KernelId::kConv2dGradInput, kTorch, cpu::active_isa());
    if (output_mask[1])
      cpu::record_kernel(cpu::KernelId::kConv2dGradWeight, kTorch, cpu::active_isa());
    const int64_t bias_size[] = {shape.out_channels};
    return at::convolution_backward(grad_output, input, weight, at::IntArrayRef(bias_size),
                                    options.stride, options.padding, options.dilation,
                                    /*transposed=*/false, /*output_padding=*/{0, 0}, options.groups,
                                    output_mask);
  }
  check_conv2d_grad_output(grad_output, input, shape);
  // A gradient that arrives in another layout than the output had is brought into that one.
  const Tensor go = grad_output.contiguous(conv2d_memory_format(input, weight));
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = grad_input_4d(shape, go, input, weight);
  if (output_mask[1]) {
    std::tie(grad_weight, grad_bias) = grad_weight_4d(shape, go, input, weight, output_mask[2]);
  } else if (output_mask[2]) {
    grad_bias = go.sum({0, 2, 3});
  }
  return {grad_input, grad_weight, grad_bias};
}

Tensor conv2d_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                  int64_t groups) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  const Tensor b = bias.value_or(Tensor());
  return conv2d_of_rank(input, [&](const Tensor& x) { return forward_4d(x, weight, b, options); });
}

Tensor3 conv2d_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                            at::IntArrayRef stride, at::IntArrayRef padding,
                            at::IntArrayRef dilation, int64_t groups,
                            std::array<bool, 3> output_mask) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  return conv2d_backward_of_rank(grad_output, input, [&](const Tensor& go, const Tensor& x) {
    return backward_4d(go, x, weight, options, output_mask);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv2d", &conv2d_cpu);
  m.impl("_conv2d_backward", &conv2d_backward_cpu);
}

}  // namespace fastconv::bindings
