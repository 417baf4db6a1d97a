// SPDX-License-Identifier: MIT
// An LSTM layer from torch's own operators, step by step: what double backward, forward-mode
// differentiation and the torch.func transforms run on.
#include <ATen/ATen.h>

#include "bindings/lstm_args.h"

namespace fastconv::bindings {
namespace {

struct State {
  Tensor h, c;
};

State step(const LstmOperands& o, const Tensor& x, const State& before) {
  const Tensor gates =
      at::linear(x, o.weight_ih, o.bias_ih) + at::linear(before.h, o.weight_hh, o.bias_hh);
  const auto g = gates.chunk(4, -1);
  const Tensor c = g[1].sigmoid() * before.c + g[0].sigmoid() * g[2].tanh();
  const Tensor m = g[3].sigmoid() * c.tanh();
  return {o.weight_hr.has_value() ? at::linear(m, *o.weight_hr) : m, c};
}

State initial_state(const LstmOperands& o, int64_t batch) {
  const int64_t hidden = o.weight_ih.size(0) / 4, out = o.weight_hh.size(1);
  return {o.h_0.has_value() ? *o.h_0 : o.input.new_zeros({batch, out}),
          o.c_0.has_value() ? *o.c_0 : o.input.new_zeros({batch, hidden})};
}

Tensor3 padded(const LstmOperands& o) {
  const int64_t steps = o.input.size(0);
  State state = initial_state(o, o.input.size(1));
  std::vector<Tensor> outputs(static_cast<size_t>(steps));
  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = o.reverse ? steps - 1 - n : n;
    const State next = step(o, o.input.select(0, t), state);
    if (!o.lengths.has_value()) {
      outputs[t] = next.h;
      state = next;
      continue;
    }
    const Tensor runs = o.lengths->gt(t).unsqueeze(1);
    outputs[t] = at::where(runs, next.h, at::zeros_like(next.h));
    state = {at::where(runs, next.h, state.h), at::where(runs, next.c, state.c)};
  }
  return {at::stack(outputs), state.h, state.c};
}

Tensor with_first_rows(const Tensor& rows, const Tensor& all) {
  const int64_t count = rows.size(0), total = all.size(0);
  return count == total ? rows : at::cat({rows, all.narrow(0, count, total - count)});
}

Tensor3 packed(const LstmOperands& o) {
  const Tensor sizes = o.batch_sizes->contiguous();
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  const int64_t steps = sizes.size(0);
  State state = initial_state(o, size[0]);
  std::vector<Tensor> outputs(static_cast<size_t>(steps));
  int64_t row = o.reverse ? o.input.size(0) : 0;
  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = o.reverse ? steps - 1 - n : n, count = size[t];
    if (o.reverse) row -= count;
    const State next = step(o, o.input.narrow(0, row, count),
                            {state.h.narrow(0, 0, count), state.c.narrow(0, 0, count)});
    if (!o.reverse) row += count;
    outputs[t] = next.h;
    state = {with_first_rows(next.h, state.h), with_first_rows(next.c, state.c)};
  }
  return {at::cat(outputs), state.h, state.c};
}

}  // namespace

Tensor3 composed_lstm_layer(const LstmOperands& operands) {
  return operands.batch_sizes.has_value() ? packed(operands) : padded(operands);
}

}  // namespace fastconv::bindings
