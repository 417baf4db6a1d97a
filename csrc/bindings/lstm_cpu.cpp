// SPDX-License-Identifier: MIT
// fastconv::lstm_layer and its backward on CPU tensors: check, allocate, call the kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "bindings/element_type.h"
#include "bindings/lstm_args.h"
#include "bindings/lstm_layer.h"
#include "bindings/lstm_results.h"
#include "bindings/outputs.h"
#include "bindings/scratch.h"
#include "cpu/lstm/lstm.h"
#include "cpu/lstm/lstm_reference.h"

namespace fastconv::bindings {
namespace {

constexpr auto kContiguous = at::MemoryFormat::Contiguous;

template <class T>
const T* read(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
T* write(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Moves tensors between the form the caller has and the rows of the kernels: with lengths, rows of
// padding are left out and sequences are sorted; otherwise both are the same memory.
class Layout {
 public:
  explicit Layout(const LstmCall& call) : call_(call), sorted_(!call.order.empty()) {
    if (!sorted_) return;
    const auto size = static_cast<int64_t>(call.order.size());
    order_ = at::empty({size}, at::kLong);
    std::copy(call.order.begin(), call.order.end(), order_.mutable_data_ptr<int64_t>());
  }

  // [T, B, width] to rows.
  Tensor rows(const Tensor& padded) const {
    if (!padded.defined()) return padded;
    const Tensor from = padded.contiguous();
    if (!sorted_) return from;
    Tensor to = empty_output({call_.shape.rows(), from.size(2)}, from.options(), kContiguous);
    dispatch_float_or_double(from, [&](auto type) {
      using T = decltype(type);
      cpu::lstm_rows_from_padded<T>(call_.shape, call_.order.data(), from.size(2), read<T>(from),
                                    write<T>(to));
    });
    return to;
  }

  // A tensor for rows; with lengths it is temporary, otherwise the caller's.
  Tensor empty_rows(int64_t width, const at::TensorOptions& options) const {
    if (sorted_) return empty_output({call_.shape.rows(), width}, options, kContiguous);
    return empty_output(lstm_sizes(call_, width), options, kContiguous);
  }

  // What empty_rows gave, in the caller's form.
  Tensor from_rows(const Tensor& rows) const {
    if (!sorted_ || !rows.defined()) return rows;
    Tensor to = empty_output(lstm_sizes(call_, rows.size(1)), rows.options(), kContiguous);
    dispatch_float_or_double(rows, [&](auto type) {
      using T = decltype(type);
      cpu::lstm_rows_to_padded<T>(call_.shape, call_.order.data(), rows.size(1), read<T>(rows),
                                  write<T>(to));
    });
    return to;
  }

  // One row per sequence, sorted, and back.
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
  const LstmCall& call_;
  bool sorted_;
  Tensor order_;
};

}  // namespace

Tensor5 lstm_layer_forward_cpu(const LstmOperands& o, bool training) {
  LstmCall call;
  parse_lstm_args(o, &call);
  const LstmShape& s = call.shape;
  const Layout layout(call);
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
  const Tensor h_n = empty_output({s.batch, s.output}, options, kContiguous);
  const Tensor c_n = empty_output({s.batch, s.hidden}, options, kContiguous);
  dispatch_float_or_double(o.input, [&](auto type) {
    using T = decltype(type);
    const cpu::LstmForward<T> kernel_call{s,
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
                                          write<T>(cells)};
    if constexpr (std::is_same_v<T, float>) {
      const Scratch scratch(cpu::lstm_forward_scratch(kernel_call));
      cpu::lstm_forward(kernel_call, scratch.data());
    } else {
      cpu::lstm_forward_reference(kernel_call);
    }
  });
  return {layout.from_rows(output), layout.unsort(h_n), layout.unsort(c_n), gates, cells};
}

LstmGradients lstm_layer_backward_cpu(const LstmGrads& grads, const LstmOperands& o,
                                      const LstmSaved& saved, std::array<bool, 8> mask) {
  LstmCall call;
  parse_lstm_args(o, &call);
  const LstmShape& s = call.shape;
  check_lstm_backward_args(call, grads, saved, o.input);
  const auto options = o.input.options();
  if (s.rows() == 0) return lstm_gradients_without_rows(call, grads, options, mask);
  const Layout layout(call);
  const Tensor input = layout.rows(o.input), output = layout.rows(saved.output);
  const Tensor h = layout.sort(dense_or_undefined(o.h_0)),
               c = layout.sort(dense_or_undefined(o.c_0));
  const Tensor w_ih = o.weight_ih.contiguous(), w_hh = o.weight_hh.contiguous();
  const Tensor w_hr = dense_or_undefined(o.weight_hr);
  const Tensor gates = saved.gates.contiguous(), cells = saved.cells.contiguous();
  const Tensor grad_output = layout.rows(grads.output.value_or(Tensor()));
  const Tensor grad_h_n = layout.sort(dense_or_undefined(grads.h_n)),
               grad_c_n = layout.sort(dense_or_undefined(grads.c_n));
  LstmGradients result = empty_lstm_gradients(call, options, mask);
  if (mask[0]) result.input = layout.empty_rows(s.input, options);
  dispatch_float_or_double(o.input, [&](auto type) {
    using T = decltype(type);
    const cpu::LstmBackward<T> kernel_call{s,
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
                                           write<T>(result.weight_hr)};
    if constexpr (std::is_same_v<T, float>) {
      const Scratch scratch(cpu::lstm_backward_scratch(kernel_call));
      cpu::lstm_backward(kernel_call, scratch.data());
    } else {
      const Tensor scratch = at::empty({cpu::lstm_backward_reference_scratch(s)}, options);
      cpu::lstm_backward_reference(kernel_call, write<T>(scratch));
    }
  });
  result.input = layout.from_rows(result.input);
  result.h_0 = mask[1] ? layout.unsort(result.h_0) : Tensor();
  result.c_0 = mask[2] ? layout.unsort(result.c_0) : Tensor();
  share_bias_gradient(&result, mask);
  return result;
}

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  LstmOperators<&lstm_layer_forward_cpu, &lstm_layer_backward_cpu>::add_to(m);
}

}  // namespace fastconv::bindings
