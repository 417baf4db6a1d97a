// SPDX-License-Identifier: MIT
#include "bindings/lstm_args.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

#include "common/checked.h"

namespace fastconv::bindings {
namespace {

bool present(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined();
}

void check_sizes(const char* name, const Tensor& tensor, at::IntArrayRef expected,
                 const Tensor& input) {
  check_lstm_tensor(name, tensor, expected, input.scalar_type());
  TORCH_CHECK(tensor.device() == input.device(),
              "lstm: expected all tensors on the input's device ", input.device(), ", got ",
              tensor.device());
}

void check_optional(const char* name, const OptionalTensor& tensor, at::IntArrayRef expected,
                    const Tensor& input) {
  if (present(tensor)) check_sizes(name, *tensor, expected, input);
}

const int64_t* integers(const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kLong && tensor.device().is_cpu(), "lstm: expected ",
              name, " of int64 in CPU memory, got ", tensor.scalar_type(), " on ", tensor.device());
  return tensor.const_data_ptr<int64_t>();
}

void parse_lengths(const Tensor& lengths, LstmCall* call) {
  LstmShape& s = call->shape;
  const int64_t expected[] = {s.batch};
  TORCH_CHECK_VALUE(lengths.sizes() == at::IntArrayRef(expected),
                    "lstm: expected lengths of shape ", at::IntArrayRef(expected), ", got ",
                    lengths.sizes());
  const Tensor dense = lengths.contiguous();
  const int64_t* length = integers("lengths", dense);
  bool full = true;
  for (int64_t b = 0; b < s.batch; ++b) {
    TORCH_CHECK_VALUE(length[b] >= 0 && length[b] <= s.steps, "lstm: expected lengths from 0 to ",
                      s.steps, ", got ", length[b], " for sequence ", b);
    full = full && length[b] == s.steps;
  }
  if (full) return;
  call->order.resize(static_cast<size_t>(s.batch));
  std::iota(call->order.begin(), call->order.end(), 0);
  std::stable_sort(call->order.begin(), call->order.end(),
                   [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  call->row_start.assign(static_cast<size_t>(s.steps) + 1, 0);
  // Count the sequences of each step, then add them up.
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t t = 0; t < length[b]; ++t) ++call->row_start[t + 1];
  std::partial_sum(call->row_start.begin(), call->row_start.end(), call->row_start.begin());
}

void parse_batch_sizes(const Tensor& input, const Tensor& batch_sizes, LstmCall* call) {
  LstmShape& s = call->shape;
  TORCH_CHECK_VALUE(batch_sizes.dim() == 1 && batch_sizes.size(0) > 0,
                    "lstm: expected batch_sizes of shape [steps], got ", batch_sizes.sizes());
  const Tensor dense = batch_sizes.contiguous();
  const int64_t* size = integers("batch_sizes", dense);
  s.steps = dense.size(0);
  s.batch = size[0];
  call->row_start.assign(static_cast<size_t>(s.steps) + 1, 0);
  for (int64_t t = 0; t < s.steps; ++t) {
    TORCH_CHECK_VALUE(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]),
                      "lstm: expected batch_sizes that are positive and never increase, got ",
                      size[t], " at step ", t);
    call->row_start[t + 1] = call->row_start[t] + size[t];
  }
  TORCH_CHECK_VALUE(call->row_start.back() == input.size(0),
                    "lstm: expected as many input rows as batch_sizes add up to, ",
                    call->row_start.back(), ", got ", input.size(0));
}

}  // namespace

std::array<Tensor, LstmOperands::kDifferentiable> LstmOperands::differentiable() const {
  const auto or_undefined = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
  return {input,     or_undefined(h_0),     or_undefined(c_0),     weight_ih,
          weight_hh, or_undefined(bias_ih), or_undefined(bias_hh), or_undefined(weight_hr)};
}

LstmOperands lstm_operands(at::ArrayRef<Tensor> tensors, bool reverse) {
  return {tensors[0],
          if_defined(tensors[1]),
          if_defined(tensors[2]),
          tensors[3],
          tensors[4],
          if_defined(tensors[5]),
          if_defined(tensors[6]),
          if_defined(tensors[7]),
          if_defined(tensors[8]),
          if_defined(tensors[9]),
          reverse};
}

bool differentiates(const LstmOperands& operands) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& t : operands.differentiable())
    if (requires_grad(t)) return true;
  return false;
}

void check_lstm_tensor(const char* name, const Tensor& tensor, at::IntArrayRef expected,
                       at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, "lstm: expected ", name, " of shape ", expected,
                    ", got ", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == dtype, "lstm: expected ", name, " of ", dtype,
              " as the input, got ", tensor.scalar_type());
}

void parse_lstm_args(const LstmOperands& o, LstmCall* call) {
  const Tensor& input = o.input;
  const bool packed = present(o.batch_sizes);
  const auto dtype = input.scalar_type();
  const bool half = dtype == at::kBFloat16 || dtype == at::kHalf;
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || (half && input.is_cuda()),
              "lstm: expected a float32 or float64 tensor, on CUDA also bfloat16 or float16, got ",
              dtype, " on ", input.device());
  TORCH_CHECK_VALUE(input.dim() == (packed ? 2 : 3),
                    packed ? "lstm: expected packed input of shape [N, input], got "
                           : "lstm: expected input of shape [steps, batch, input], got ",
                    input.sizes());
  TORCH_CHECK_VALUE(
      o.weight_ih.dim() == 2 && o.weight_ih.size(0) > 0 && o.weight_ih.size(0) % 4 == 0,
      "lstm: expected weight_ih of shape [4*hidden, input], got ", o.weight_ih.sizes());
  LstmShape& s = call->shape;
  call->padded = !packed;
  s.input = input.size(-1);
  s.hidden = o.weight_ih.size(0) / 4;
  s.projected = present(o.weight_hr);
  s.output = s.projected && o.weight_hr->dim() == 2 ? o.weight_hr->size(0) : s.hidden;
  s.reverse = o.reverse;
  TORCH_CHECK_VALUE(s.output > 0, "lstm: expected weight_hr of shape [proj, hidden], got ",
                    s.projected ? o.weight_hr->sizes() : at::IntArrayRef());
  TORCH_CHECK_VALUE(!(packed && present(o.lengths)),
                    "lstm: expected lengths or batch_sizes, got both");
  if (packed) {
    parse_batch_sizes(input, *o.batch_sizes, call);
  } else {
    s.steps = input.size(0);
    s.batch = input.size(1);
    TORCH_CHECK_VALUE(s.steps > 0, "lstm: expected at least one step, got input ", input.sizes());
    if (present(o.lengths)) parse_lengths(*o.lengths, call);
  }
  s.row_start = call->row_start.empty() ? nullptr : call->row_start.data();
  TORCH_CHECK_VALUE(o.weight_ih.size(1) == s.input, "lstm: expected weight_ih of shape [",
                    s.gates(), ", ", s.input, "] for inputs of size ", s.input, ", got ",
                    o.weight_ih.sizes());
  check_sizes("weight_ih", o.weight_ih, {s.gates(), s.input}, input);
  check_sizes("weight_hh", o.weight_hh, {s.gates(), s.output}, input);
  check_optional("bias_ih", o.bias_ih, {s.gates()}, input);
  check_optional("bias_hh", o.bias_hh, {s.gates()}, input);
  check_optional("weight_hr", o.weight_hr, {s.output, s.hidden}, input);
  check_optional("hx", o.h_0, {s.batch, s.output}, input);
  check_optional("cx", o.c_0, {s.batch, s.hidden}, input);
  int64_t elements = 0;
  TORCH_CHECK_VALUE(
      checked_product({s.steps, std::max<int64_t>(s.batch, 1), s.gates(), 16}, &elements),
      "lstm: expected sizes that fit 64-bit integers, got input ", input.sizes());
}

}  // namespace fastconv::bindings
