// SPDX-License-Identifier: MIT
// fastconv::conv2d and its backward on CUDA tensors: check, allocate, launch.
#include "bindings/conv2d_cuda.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/library.h>

#include "bindings/conv2d_args.h"
#include "bindings/cuda_call.h"
#include "bindings/ops.h"
#include "bindings/outputs.h"
#include "bindings/strides.h"
#include "cuda/conv2d/conv2d.h"

namespace fastconv::bindings {
namespace {

cuda::Conv2dElement element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return cuda::Conv2dElement::kFloat64;
    case at::kBFloat16:
      return cuda::Conv2dElement::kBFloat16;
    case at::kHalf:
      return cuda::Conv2dElement::kFloat16;
    case at::kFloat:
      return cuda::Conv2dElement::kFloat32;
    default:
      TORCH_CHECK(false,
                  "conv2d: expected float32, float64, bfloat16 or float16 CUDA tensors, got ",
                  tensor.scalar_type());
  }
}

// What every pass has in common; the plan follows when the call is complete.
template <typename Call>
Call start_call(const Conv2dShape& shape, const Tensor& input, const CudaCall& cuda_call) {
  Call call{};
  call.shape = shape;
  call.element = element_of(input);
  call.allow_tf32 = at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  call.device = cuda_call.device();
  return call;
}

// Plans, takes the workspace and launches.
template <typename Call>
void run_call(CudaCall& cuda_call, Call& call, cuda::Conv2dPlan (*plan)(const Call&),
              cudaError_t (*launch)(const Call&, cudaStream_t)) {
  call.plan = plan(call);
  call.workspace = cuda_call.workspace(call.plan.workspace_bytes);
  cuda_call.check(launch(call, cuda_call.stream()));
}

Tensor forward_4d(const Tensor& input, const Tensor& weight, const Tensor& bias,
                  const Conv2dOptions& options, const Conv2dEpilogue& epilogue) {
  const Conv2dShape shape = parse_conv2d_args(input, weight, bias, options);
  CudaCall cuda_call("conv2d", {{"input", input}, {"weight", weight}, {"bias", bias}});
  const Tensor b = bias.defined() ? bias.contiguous() : bias;
  auto call = start_call<cuda::Conv2dForward>(shape, input, cuda_call);
  call.input = input.const_data_ptr();
  call.input_strides = strides_of(input);
  call.weight = weight.const_data_ptr();
  call.weight_strides = strides_of(weight);
  call.bias = b.defined() ? b.const_data_ptr() : nullptr;
  call.activation = epilogue.activation;
  call.negative_slope = static_cast<float>(epilogue.negative_slope);
  call.pool = epilogue.pool;
  if (!cuda::conv2d_pools(call)) return Tensor();
  Tensor output =
      empty_output({shape.batch, shape.out_channels, call.pooled_height(), call.pooled_width()},
                   input.options(), conv2d_memory_format(input, weight));
  if (output.numel() == 0) return output;
  call.output = output.mutable_data_ptr();
  call.output_strides = strides_of(output);
  run_call(cuda_call, call, cuda::plan_conv2d_forward, cuda::launch_conv2d_forward);
  return output;
}

Tensor grad_input_4d(CudaCall& cuda_call, const Conv2dShape& shape, const Tensor& grad_output,
                     const Tensor& input, const Tensor& weight) {
  Tensor grad_input =
      empty_output(input.sizes(), input.options(), conv2d_memory_format(input, weight));
  if (grad_input.numel() == 0) return grad_input;
  auto call = start_call<cuda::Conv2dGradInput>(shape, input, cuda_call);
  call.grad_output = grad_output.const_data_ptr();
  call.grad_output_strides = strides_of(grad_output);
  call.weight = weight.const_data_ptr();
  call.weight_strides = strides_of(weight);
  call.grad_input = grad_input.mutable_data_ptr();
  call.grad_input_strides = strides_of(grad_input);
  run_call(cuda_call, call, cuda::plan_conv2d_grad_input, cuda::launch_conv2d_grad_input);
  return grad_input;
}

// Returns (grad_weight, grad_bias); the second is undefined unless `with_bias`.
std::pair<Tensor, Tensor> grad_weight_4d(CudaCall& cuda_call, const Conv2dShape& shape,
                                         const Tensor& grad_output, const Tensor& input,
                                         const Tensor& weight, bool with_bias) {
  Tensor grad_weight = at::empty(weight.sizes(), weight.options(), weight.suggest_memory_format());
  Tensor grad_bias = with_bias ? at::empty({shape.out_channels}, weight.options()) : Tensor();
  if (grad_output.numel() == 0) {
    grad_weight.zero_();
    if (with_bias) grad_bias.zero_();
    return {grad_weight, grad_bias};
  }
  auto call = start_call<cuda::Conv2dGradWeight>(shape, input, cuda_call);
  call.grad_output = grad_output.const_data_ptr();
  call.grad_output_strides = strides_of(grad_output);
  call.input = input.const_data_ptr();
  call.input_strides = strides_of(input);
  call.grad_weight = grad_weight.mutable_data_ptr();
  call.grad_weight_strides = strides_of(grad_weight);
  call.grad_bias = with_bias ? grad_bias.mutable_data_ptr() : nullptr;
  run_call(cuda_call, call, cuda::plan_conv2d_grad_weight, cuda::launch_conv2d_grad_weight);
  return {grad_weight, grad_bias};
}

Tensor3 backward_4d(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                    const Conv2dOptions& options, std::array<bool, 3> output_mask) {
  const Conv2dShape shape = parse_conv2d_args(input, weight, Tensor(), options);
  check_conv2d_grad_output(grad_output, input, shape);
  CudaCall cuda_call("conv2d",
                     {{"grad_output", grad_output}, {"input", input}, {"weight", weight}});
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = grad_input_4d(cuda_call, shape, grad_output, input, weight);
  if (output_mask[1]) {
    std::tie(grad_weight, grad_bias) =
        grad_weight_4d(cuda_call, shape, grad_output, input, weight, output_mask[2]);
  } else if (output_mask[2]) {
    grad_bias = grad_output.sum({0, 2, 3});
  }
  return {grad_input, grad_weight, grad_bias};
}

Tensor conv2d_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   int64_t groups) {
  return conv2d_fused_cuda(input, weight, bias, {stride, padding, dilation, groups},
                           {Activation::kNone, 0.0, {cuda::BlockPool::kNone, 0, 0}});
}

Tensor3 conv2d_backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups,
                             std::array<bool, 3> output_mask) {
  const Conv2dOptions options{stride, padding, dilation, groups};
  return conv2d_backward_of_rank(grad_output, input, [&](const Tensor& go, const Tensor& x) {
    return backward_4d(go, x, weight, options, output_mask);
  });
}

}  // namespace

Tensor conv2d_fused_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const Conv2dOptions& options, const Conv2dEpilogue& epilogue) {
  const Tensor b = bias.value_or(Tensor());
  return conv2d_of_rank(
      input, [&](const Tensor& x) { return forward_4d(x, weight, b, options, epilogue); });
}

TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("conv2d", &conv2d_cuda);
  m.impl("_conv2d_backward", &conv2d_backward_cuda);
}

}  // namespace fastconv::bindings
