// SPDX-License-Identifier: MIT
// fastconv::lstm_layer and its backward on CUDA tensors: check, allocate, launch.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/library.h>

#include "bindings/cuda_call.h"
#include "bindings/lstm_args.h"
#include "bindings/lstm_results.h"
#include "bindings/outputs.h"
#include "cuda/lstm/lstm.h"

namespace fastconv::bindings {
namespace {

constexpr auto kContiguous = at::MemoryFormat::Contiguous;
constexpr const char* kOp = "lstm";

template <class Body>
void dispatch_element(const Tensor& tensor, Body&& body) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(__nv_bfloat16{});
    case at::kHalf:
      return body(__half{});
    default:  // the parser lets only these four through
      return body(float{});
  }
}

template <class T>
const T* read(const Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

template <class T>
T* write(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// What kernels load in whole vectors: a tensor that starts between two of them is copied.
Tensor aligned(const Tensor& tensor) {
  const Tensor dense = tensor.contiguous();
  const auto address = reinterpret_cast<uintptr_t>(dense.const_data_ptr());
  return address % 16 == 0 ? dense : dense.clone(kContiguous);
}

// As Layout in lstm_cpu.cpp, on the GPU: with lengths, rows of padding are left out and sequences
// are sorted. The numbers that say so travel as arguments of kernels.
class Layout {
 public:
  Layout(const LstmCall& call, CudaCall& cuda, const at::TensorOptions& options)
      : call_(call), cuda_(cuda), sorted_(!call.order.empty()) {
    if (!sorted_) return;
    const auto integers = options.dtype(at::kLong);
    order_ = stored(call.order, integers);
    row_start_ = stored(call.row_start, integers);
  }

  Tensor rows(const Tensor& padded) const {
    if (!padded.defined()) return padded;
    const Tensor from = padded.contiguous();
    if (!sorted_) return from;
    const Tensor to = empty_output({call_.shape.rows(), from.size(2)}, from.options(), kContiguous);
    dispatch_element(from, [&](auto type) {
      using T = decltype(type);
      cuda_.check(cuda::launch_lstm_rows_from_padded<T>(move<T>(from.size(2)), read<T>(from),
                                                        write<T>(to), cuda_.stream()));
    });
    return to;
  }

  Tensor empty_rows(int64_t width, const at::TensorOptions& options) const {
    if (sorted_) return empty_output({call_.shape.rows(), width}, options, kContiguous);
    return empty_output(lstm_sizes(call_, width), options, kContiguous);
  }

  Tensor from_rows(const Tensor& rows) const {
    if (!sorted_ || !rows.defined()) return rows;
    const Tensor to = empty_output(lstm_sizes(call_, rows.size(1)), rows.options(), kContiguous);
    dispatch_element(rows, [&](auto type) {
      using T = decltype(type);
      cuda_.check(cuda::launch_lstm_rows_to_padded<T>(move<T>(rows.size(1)), read<T>(rows),
                                                      write<T>(to), cuda_.stream()));
    });
    return to;
  }

  Tensor sort(const Tensor& states) const {
    return sorted_ && states.defined() ? states.index_select(0, order_) : states;
  }
  Tensor unsort(const Tensor& states) const {
    if (!sorted_ || !states.defined()) return states;
    Tensor to = at::empty_like(states, kContiguous);
    to.index_copy_(0, order_, states);
    return to;
  }

 private:
  Tensor stored(const std::vector<int64_t>& values, const at::TensorOptions& options) const {
    const auto count = static_cast<int64_t>(values.size());
    const Tensor tensor = at::empty({count}, options);
    cuda_.check(cuda::launch_store_integers(values.data(), count,
                                            tensor.mutable_data_ptr<int64_t>(), cuda_.stream()));
    return tensor;
  }

  template <class T>
  cuda::LstmRowMove<T> move(int64_t width) const {
    return {call_.shape, order_.const_data_ptr<int64_t>(), row_start_.const_data_ptr<int64_t>(),
            width};
  }

  const LstmCall& call_;
  CudaCall& cuda_;
  bool sorted_;
  Tensor order_, row_start_;
};

bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
}

Tensor converted(const Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() ? tensor.to(dtype) : tensor;
}
OptionalTensor converted(const OptionalTensor& tensor, at::ScalarType dtype) {
  return tensor.has_value() ? OptionalTensor(converted(*tensor, dtype)) : std::nullopt;
}

LstmOperands converted(const LstmOperands& o, at::ScalarType dtype) {
  return {converted(o.input, dtype),
          converted(o.h_0, dtype),
          converted(o.c_0, dtype),
          converted(o.weight_ih, dtype),
          converted(o.weight_hh, dtype),
          converted(o.bias_ih, dtype),
          converted(o.bias_hh, dtype),
          converted(o.weight_hr, dtype),
          o.lengths,
          o.batch_sizes,
          o.reverse};
}

// GPUs before compute capability 8.0 multiply 16-bit numbers as float32 ones.
bool lacks_tensor_cores(const Tensor& input, const CudaCall& cuda) {
  return is_half(input) && cuda.device().compute_capability < 80;
}

// Whether float32 products may run on tensor cores, as those of torch's own LSTM then do.
bool may_round(const CudaCall& cuda) {
  return cuda.device().compute_capability >= 80 &&
         at::globalContext().allowTF32CuDNN(at::Float32Op::RNN);
}

Tensor5 forward(const LstmOperands& o, bool training) {
  LstmCall call;
  parse_lstm_args(o, &call);
  const LstmShape& s = call.shape;
  CudaCall cuda(kOp, {{"input", o.input}, {"weight_ih", o.weight_ih}});
  if (lacks_tensor_cores(o.input, cuda)) {
    const auto dtype = o.input.scalar_type();
    const auto [y, h, c, gates, cells] = forward(converted(o, at::kFloat), training);
    return {converted(y, dtype), converted(h, dtype), converted(c, dtype), converted(gates, dtype),
            converted(cells, dtype)};
  }
  const Layout layout(call, cuda, o.input.options());
  const auto options = o.input.options();
  Tensor gates, cells;
  if (training) {
    gates = empty_output({lstm_saved_rows(call), s.gates()}, options, kContiguous);
    cells = empty_output({lstm_saved_rows(call), s.hidden}, options, kContiguous);
  }
  if (s.rows() == 0) {
    const auto [output, h_n, c_n] = lstm_results_without_rows(call, o);
    return {output, h_n, c_n, gates, cells};
  }
  const Tensor input = layout.rows(o.input), h = layout.sort(dense_or_undefined(o.h_0)),
               c = layout.sort(dense_or_undefined(o.c_0));
  const Tensor w_ih = o.weight_ih.contiguous(), w_hh = o.weight_hh.contiguous();
  const Tensor b_ih = dense_or_undefined(o.bias_ih), b_hh = dense_or_undefined(o.bias_hh),
               w_hr = dense_or_undefined(o.weight_hr);
  const Tensor output = layout.empty_rows(s.output, options);
  const Tensor h_n = at::empty({s.batch, s.output}, options);
  const Tensor c_n = at::empty({s.batch, s.hidden}, options);
  dispatch_element(o.input, [&](auto type) {
    using T = decltype(type);
    cuda::LstmForward<T> kernel_call{s,
                                     cuda::choose_lstm_path(s, sizeof(T), cuda.device()),
                                     may_round(cuda),
                                     read<T>(input),
                                     read<T>(h),
                                     read<T>(c),
                                     read<T>(w_ih),
                                     read<T>(w_hh),
                                     read<T>(b_ih),
                                     read<T>(b_hh),
                                     read<T>(w_hr),
                                     write<T>(output),
                                     write<T>(h_n),
                                     write<T>(c_n),
                                     write<T>(gates),
                                     write<T>(cells),
                                     nullptr};
    kernel_call.workspace = cuda.workspace(cuda::lstm_forward_workspace_bytes(kernel_call));
    cuda.check(cuda::launch_lstm_forward(kernel_call, cuda.stream()));
  });
  return {layout.from_rows(output), layout.unsort(h_n), layout.unsort(c_n), gates, cells};
}

LstmGradients backward(const LstmGrads& grads, const LstmOperands& o, const LstmSaved& saved,
                       std::array<bool, 8> mask);

LstmGradients backward_in_float32(const LstmGrads& grads, const LstmOperands& o,
                                  const LstmSaved& saved, std::array<bool, 8> mask) {
  const auto float32 = at::kFloat, dtype = o.input.scalar_type();
  LstmGradients g = backward({converted(grads.output, float32), converted(grads.h_n, float32),
                              converted(grads.c_n, float32)},
                             converted(o, float32),
                             {converted(saved.output, float32), converted(saved.gates, float32),
                              converted(saved.cells, float32)},
                             mask);
  for (Tensor* t :
       {&g.input, &g.h_0, &g.c_0, &g.weight_ih, &g.weight_hh, &g.bias_ih, &g.bias_hh, &g.weight_hr})
    *t = converted(*t, dtype);
  return g;
}

LstmGradients backward(const LstmGrads& grads, const LstmOperands& o, const LstmSaved& saved,
                       std::array<bool, 8> mask) {
  LstmCall call;
  parse_lstm_args(o, &call);
  const LstmShape& s = call.shape;
  check_lstm_backward_args(call, grads, saved, o.input);
  CudaCall cuda(kOp, {{"input", o.input},
                      {"grad_output", grads.output},
                      {"grad_h_n", grads.h_n},
                      {"grad_c_n", grads.c_n},
                      {"output", saved.output},
                      {"gates", saved.gates},
                      {"cells", saved.cells}});
  if (lacks_tensor_cores(o.input, cuda)) return backward_in_float32(grads, o, saved, mask);
  const auto options = o.input.options();
  if (s.rows() == 0) return lstm_gradients_without_rows(call, grads, options, mask);
  const Layout layout(call, cuda, options);
  const Tensor input = layout.rows(o.input), output = layout.rows(saved.output);
  const Tensor h = layout.sort(dense_or_undefined(o.h_0)),
               c = layout.sort(dense_or_undefined(o.c_0));
  const Tensor w_ih = o.weight_ih.contiguous(), w_hh = o.weight_hh.contiguous();
  const Tensor w_hr = dense_or_undefined(o.weight_hr);
  const Tensor gates = aligned(saved.gates), cells = saved.cells.contiguous();
  const Tensor grad_output = layout.rows(grads.output.value_or(Tensor()));
  const Tensor grad_h_n = layout.sort(dense_or_undefined(grads.h_n)),
               grad_c_n = layout.sort(dense_or_undefined(grads.c_n));
  LstmGradients result = empty_lstm_gradients(call, options, mask);
  if (mask[0]) result.input = layout.empty_rows(s.input, options);
  dispatch_element(o.input, [&](auto type) {
    using T = decltype(type);
    cuda::LstmBackward<T> kernel_call{s,
                                      cuda::choose_lstm_path(s, sizeof(T), cuda.device()),
                                      may_round(cuda),
                                      read<T>(input),
                                      read<T>(h),
                                      read<T>(c),
                                      read<T>(w_ih),
                                      read<T>(w_hh),
                                      read<T>(w_hr),
                                      read<T>(output),
                                      read<T>(gates),
                                      read<T>(cells),
                                      read<T>(grad_output),
                                      read<T>(grad_h_n),
                                      read<T>(grad_c_n),
                                      write<T>(result.input),
                                      write<T>(result.h_0),
                                      write<T>(result.c_0),
                                      write<T>(result.weight_ih),
                                      write<T>(result.weight_hh),
                                      write<T>(result.bias_ih),
                                      write<T>(result.weight_hr),
                                      nullptr};
    kernel_call.workspace = cuda.workspace(cuda::lstm_backward_workspace_bytes(kernel_call));
    cuda.check(cuda::launch_lstm_backward(kernel_call, cuda.stream()));
  });
  result.input = layout.from_rows(result.input);
  result.h_0 = mask[1] ? layout.unsort(result.h_0) : Tensor();
  result.c_0 = mask[2] ? layout.unsort(result.c_0) : Tensor();
  share_bias_gradient(&result, mask);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  LstmOperators<&forward, &backward>::add_to(m);
}

}  // namespace fastconv::bindings
