// SPDX-License-Identifier: MIT
// Batch normalisation on CPU tensors: check, allocate, call the kernels.
#include "cpu/batch_norm/batch_norm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "bindings/batch_norm_args.h"
#include "bindings/element_type.h"
#include "bindings/outputs.h"
#include "bindings/scratch.h"

namespace fastconv::bindings {
namespace {

// How the kernels see an input: results have its memory format, and all tensors are made dense.
struct Layout {
  explicit Layout(const Tensor& input)
      : shape(batch_norm_shape(input)),
        format(input.suggest_memory_format()),
        channels_last(format != at::MemoryFormat::Contiguous || shape.pixels == 1) {}

  Tensor dense(const Tensor& tensor) const { return tensor.contiguous(format); }
  Tensor new_output(const Tensor& like) const {
    return empty_output(like.sizes(), like.options(), format);
  }

  BatchNormShape shape;
  at::MemoryFormat format;
  bool channels_last;
};

// A per-channel vector that may be absent.
template <typename T>
class Vector {
 public:
  explicit Vector(const OptionalTensor& tensor)
      : tensor_(tensor.has_value() && tensor->defined() ? tensor->contiguous() : Tensor()) {}
  const T* data() const { return tensor_.defined() ? tensor_.const_data_ptr<T>() : nullptr; }

 private:
  Tensor tensor_;
};

// Running statistics: read and written. Strided ones are written back by finish().
template <typename T>
class Running {
 public:
  explicit Running(const OptionalTensor& tensor) {
    if (!tensor.has_value() || !tensor->defined()) return;
    original_ = *tensor;
    dense_ = original_.contiguous();
  }
  T* data() const { return dense_.defined() ? dense_.mutable_data_ptr<T>() : nullptr; }
  void finish() const {
    if (!dense_.is_same(original_)) original_.copy_(dense_);
  }

 private:
  Tensor original_, dense_;
};

void check_dtypes(const Tensor& input, const BatchNormTensors& tensors) {
  TORCH_CHECK(batch_norm_on_kernels(input, tensors),
              "batch_norm: expected tensors of one dtype, float32 or float64, got input of ",
              input.scalar_type());
}

Tensor3 batch_norm_training_pass(const Tensor& input, const OptionalTensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& running_mean,
                                 const OptionalTensor& running_var, double momentum, double eps,
                                 bool relu) {
  const BatchNormTensors tensors{weight, bias, running_mean, running_var};
  check_batch_norm_args(input, tensors, /*training=*/true);
  check_dtypes(input, tensors);
  const Layout layout(input);
  const Tensor output = layout.new_output(input);
  const auto options = input.options().memory_format(std::nullopt);
  if (input.numel() == 0) {
    return {output, at::zeros({2, layout.shape.channels}, options),
            at::zeros({layout.shape.channels}, options)};
  }
  const Tensor mean = at::empty({2, layout.shape.channels}, options);
  const Tensor invstd = at::empty({layout.shape.channels}, options);
  const Tensor x = layout.dense(input);
  const Scratch scratch(cpu::batch_norm_scratch(layout.shape, layout.channels_last));
  dispatch_float_or_double(input, [&](auto type) {
    using T = decltype(type);
    const Vector<T> w(weight), b(bias);
    const Running<T> m(running_mean), v(running_var);
    cpu::batch_norm_training<T>(
        {layout.shape, layout.channels_last, relu, eps, x.const_data_ptr<T>(), w.data(), b.data(),
         output.mutable_data_ptr<T>(), mean.mutable_data_ptr<T>(), invstd.mutable_data_ptr<T>(),
         momentum, m.data(), v.data()},
        scratch.data());
    m.finish();
    v.finish();
  });
  return {output, mean, invstd};
}

Tensor batch_norm_training_cpu(const Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& running_mean,
                               const OptionalTensor& running_var, double momentum, double eps,
                               bool relu) {
  const BatchNormTensors tensors{weight, bias, running_mean, running_var};
  check_batch_norm_call(input, tensors, /*training=*/true, eps);
  if (!batch_norm_on_kernels(input, tensors))
    return torch_batch_norm(input, tensors, /*training=*/true, {momentum, eps, relu});
  return std::get<0>(batch_norm_training_pass(input, weight, bias, running_mean, running_var,
                                              momentum, eps, relu));
}

Tensor batch_norm_inference_cpu(const Tensor& input, const Tensor& running_mean,
                                const Tensor& running_var, const OptionalTensor& weight,
                                const OptionalTensor& bias, double eps, bool relu) {
  const BatchNormTensors tensors{weight, bias, running_mean, running_var};
  check_batch_norm_call(input, tensors, /*training=*/false, eps);
  if (!batch_norm_on_kernels(input, tensors))
    return torch_batch_norm(input, tensors, /*training=*/false, {0, eps, relu});
  const Layout layout(input);
  const Tensor output = layout.new_output(input);
  if (input.numel() == 0) return output;
  const Tensor x = layout.dense(input);
  const Scratch scratch(cpu::batch_norm_scratch(layout.shape, layout.channels_last));
  dispatch_float_or_double(input, [&](auto type) {
    using T = decltype(type);
    const Vector<T> w(weight), b(bias), mean(running_mean), var(running_var);
    cpu::batch_norm_inference<T>(
        {layout.shape, layout.channels_last, relu, eps, x.const_data_ptr<T>(), w.data(), b.data(),
         mean.data(), var.data(), output.mutable_data_ptr<T>()},
        scratch.data());
  });
  return output;
}

Tensor3 batch_norm_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                const Tensor& invstd, const OptionalTensor& weight,
                                const OptionalTensor& bias, bool training, bool relu,
                                std::array<bool, 3> output_mask) {
  check_batch_norm_args(input, {weight, bias, std::nullopt, invstd}, training);
  check_dtypes(input, {weight, bias, mean, invstd});
  TORCH_CHECK_VALUE(mean.sizes() == at::IntArrayRef({2, input.size(1)}),
                    "batch_norm: expected mean of shape [2, ", input.size(1), "], got ",
                    mean.sizes());
  TORCH_CHECK_VALUE(
      grad_output.sizes() == input.sizes() && grad_output.scalar_type() == input.scalar_type(),
      "batch_norm: expected grad_output of shape ", input.sizes(), " and ", input.scalar_type(),
      ", got ", grad_output.sizes(), " and ", grad_output.scalar_type());
  const Layout layout(input);
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) grad_input = layout.new_output(input);
  if (output_mask[1]) grad_weight = at::zeros_like(invstd);
  if (output_mask[2]) grad_bias = at::zeros_like(invstd);
  if (input.numel() == 0) return {grad_input, grad_weight, grad_bias};
  const Tensor x = layout.dense(input), go = layout.dense(grad_output);
  const Scratch scratch(cpu::batch_norm_scratch(layout.shape, layout.channels_last));
  dispatch_float_or_double(input, [&](auto type) {
    using T = decltype(type);
    const auto place = [](const Tensor& t) {
      return t.defined() ? t.mutable_data_ptr<T>() : nullptr;
    };
    const Vector<T> w(weight), b(bias), m(mean), s(invstd);
    cpu::batch_norm_backward<T>(
        {layout.shape, layout.channels_last, relu, training, go.const_data_ptr<T>(),
         x.const_data_ptr<T>(), w.data(), b.data(), m.data(), s.data(), place(grad_input),
         place(grad_weight), place(grad_bias)},
        scratch.data());
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("batch_norm_training", &batch_norm_training_cpu);
  m.impl("batch_norm_inference", &batch_norm_inference_cpu);
  m.impl("_batch_norm_training", &batch_norm_training_pass);
  m.impl("_batch_norm_backward", &batch_norm_backward_cpu);
}

}  // namespace fastconv::bindings
