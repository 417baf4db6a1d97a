// SPDX-License-Identifier: MIT
// An LSTM layer on CPU tensors without the dispatcher and without torch's autograd Function, whose
// bookkeeping takes longer than the kernels of a small layer; and stacks of layers.
#pragma once

#include <optional>

#include "bindings/lstm_args.h"
#include "bindings/lstm_results.h"

namespace fastconv::bindings {

// What the registered operators run on CPU tensors. Without `training`, the last two results stay
// undefined.
Tensor5 lstm_layer_forward_cpu(const LstmOperands& operands, bool training);
LstmGradients lstm_layer_backward_cpu(const LstmGrads& grads, const LstmOperands& operands,
                                      const LstmSaved& saved, std::array<bool, 8> mask);

// True for calls that plain_lstm_layer serves. Absent operands must be nullopt.
bool is_plain_lstm(const LstmOperands& operands);

// As the operator lstm_layer, below or at autograd, where is_plain_lstm. With `stacked`, the states
// h_n and c_n get a first dimension of size one.
Tensor3 plain_lstm_layer(const LstmOperands& operands, bool stacked);

struct LstmStack {
  Tensor input;        // [T, B, I], or [B, T, I] with batch_first
  OptionalTensor h_0;  // [layers * directions, B, P]
  OptionalTensor c_0;
  at::TensorList parameters;  // as fastconv.functional.lstm has them
  OptionalTensor lengths;
  bool has_biases;
  int64_t layers;
  bool bidirectional;
  bool batch_first;
};

// The layers one after the other, without dropout: output, h_n, c_n as fastconv.functional.lstm
// returns them. Nothing for arguments that are not as simple as they could be, or wrong.
std::optional<Tensor3> lstm_stack(const LstmStack& stack);

}  // namespace fastconv::bindings
