// SPDX-License-Identifier: MIT
#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include "bindings/lstm_layer.h"
#include "bindings/plain_tensors.h"

namespace fastconv::bindings {
namespace {

// The operands of layer and direction number k among `cells`, whose input is `rows`.
LstmOperands operands_of(const LstmStack& s, int64_t k, int64_t cells, const Tensor& rows,
                         bool reverse) {
  const auto each = static_cast<int64_t>(s.parameters.size()) / cells;
  const int64_t without_projection = s.has_biases ? 4 : 2;
  const Tensor* group = &s.parameters[k * each];
  const auto state = [&](const OptionalTensor& all) {
    return all.has_value() ? OptionalTensor(all->select(0, k)) : std::nullopt;
  };
  const auto at = [&](bool exists, int64_t i) {
    return exists ? OptionalTensor(group[i]) : std::nullopt;
  };
  return {rows,
          state(s.h_0),
          state(s.c_0),
          group[0],
          group[1],
          at(s.has_biases, 2),
          at(s.has_biases, 3),
          at(each > without_projection, each - 1),
          s.lengths,
          std::nullopt,
          reverse};
}

// Only what decides which rule of fastconv.ops.lstm a call falls under; lstm_args.cpp checks.
bool is_simple(const LstmStack& s, int64_t cells) {
  const auto size = static_cast<int64_t>(s.parameters.size());
  const int64_t least = s.has_biases ? 4 : 2;
  if (cells <= 0 || size % cells != 0 || (size != least * cells && size != (least + 1) * cells))
    return false;
  const Tensor &input = s.input, &weight = s.parameters[0];
  if (input.dim() != 3 || weight.dim() != 2 || input.size(2) != weight.size(1) ||
      input.scalar_type() != weight.scalar_type())
    return false;
  const auto fits = [&](const OptionalTensor& state, int64_t width) {
    return !state.has_value() ||
           (state->dim() == 3 && state->size(0) == cells &&
            state->size(1) == input.size(s.batch_first ? 0 : 1) && state->size(2) == width);
  };
  const Tensor& recurrent = s.parameters[1];
  if (recurrent.dim() != 2 || !fits(s.h_0, recurrent.size(1)) || !fits(s.c_0, weight.size(0) / 4))
    return false;
  return input.is_cuda() || input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble;
}

Tensor3 run_layer(const LstmOperands& o, bool stacked) {
  if (!is_plain_lstm(o)) {
    const auto [output, h_n, c_n] = call_lstm_layer(o);
    if (!stacked) return {output, h_n, c_n};
    return {output, h_n.unsqueeze(0), c_n.unsqueeze(0)};
  }
  // What the dispatcher does for profilers.
  RECORD_FUNCTION("fastconv::lstm_layer", std::vector<c10::IValue>());
  return plain_lstm_layer(o, stacked);
}

}  // namespace

std::optional<Tensor3> lstm_stack(const LstmStack& s) {
  const int64_t directions = s.bidirectional ? 2 : 1, cells = s.layers * directions;
  if (!nothing_intervenes() || !is_simple(s, cells)) return std::nullopt;
  Tensor rows = s.batch_first ? s.input.transpose(0, 1) : s.input;
  std::vector<Tensor> last_h, last_c;
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    Tensor outputs[2];
    for (int64_t d = 0; d < directions; ++d) {
      const int64_t k = layer * directions + d;
      auto [output, h_n, c_n] = run_layer(operands_of(s, k, cells, rows, d == 1), cells == 1);
      outputs[d] = std::move(output);
      last_h.push_back(std::move(h_n));
      last_c.push_back(std::move(c_n));
    }
    rows = directions == 1 ? outputs[0] : at::cat({outputs[0], outputs[1]}, -1);
  }
  if (s.batch_first) rows = rows.transpose(0, 1);
  if (cells == 1) return Tensor3(rows, last_h[0], last_c[0]);
  return Tensor3(rows, at::stack(last_h), at::stack(last_c));
}

}  // namespace fastconv::bindings
