// SPDX-License-Identifier: MIT
// The one parser and checker of the arguments of an LSTM layer, and its registered operators as
// typed C++ calls.
#pragma once

#include <vector>

#include "bindings/ops.h"
#include "common/shapes.h"

namespace fastconv::bindings {

using Tensor5 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Tensor8 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// One layer in one direction. Three forms of a batch of sequences:
//   padded, all of full length   input [T, B, I]
//   padded, with lengths         input [T, B, I], lengths int64 [B] in any order, 0 .. T
//   packed                       input [N, I], batch_sizes int64 [T], not increasing, sum N
struct LstmOperands {
  Tensor input;
  OptionalTensor h_0;      // [B, P]; absent: zeros
  OptionalTensor c_0;      // [B, H]
  Tensor weight_ih;        // [4 * H, I]
  Tensor weight_hh;        // [4 * H, P]
  OptionalTensor bias_ih;  // [4 * H]
  OptionalTensor bias_hh;
  OptionalTensor weight_hr;  // [P, H]
  OptionalTensor lengths;
  OptionalTensor batch_sizes;
  bool reverse;

  static constexpr size_t kDifferentiable = 8;  // the first members, in this order
  std::array<Tensor, kDifferentiable> differentiable() const;
};

// All ten tensors in the order of the members, absent ones undefined.
LstmOperands lstm_operands(at::ArrayRef<Tensor> tensors, bool reverse);

// True in grad mode when an operand asks for a gradient.
bool differentiates(const LstmOperands& operands);

// Sizes of one call, with the memory behind them. Not to be copied: `shape` points into it.
struct LstmCall {
  LstmShape shape{};
  std::vector<int64_t> row_start;  // empty when all sequences are of full length
  std::vector<int64_t> order;      // lengths only: longest first, ties in the order they came
  bool padded;                     // the input and output are [T, B, .]

  LstmCall() = default;
  LstmCall(const LstmCall&) = delete;
  LstmCall& operator=(const LstmCall&) = delete;
};

// Throws ValueError or RuntimeError with a message "lstm: expected ..., got ...".
void parse_lstm_args(const LstmOperands& operands, LstmCall* call);

// Throws unless `tensor` has these sizes and this dtype.
void check_lstm_tensor(const char* name, const Tensor& tensor, at::IntArrayRef expected,
                       at::ScalarType dtype);

Tensor3 call_lstm_layer(const LstmOperands& operands);
// And what the backward pass needs: gates after their activations, cell states.
Tensor5 call_lstm_layer_training(const LstmOperands& operands);

// One step: input [B, I], states [B, H] or absent.
Tensor2 call_lstm_cell(const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0,
                       const Tensor& weight_ih, const Tensor& weight_hh,
                       const OptionalTensor& bias_ih, const OptionalTensor& bias_hh);

struct LstmSaved {
  Tensor output, gates, cells;
};

struct LstmGrads {
  OptionalTensor output, h_n, c_n;
};

Tensor8 call_lstm_layer_backward(const LstmGrads& grads, const LstmOperands& operands,
                                 const LstmSaved& saved, std::array<bool, 8> output_mask);

// The gradients by torch's operators, in the order of LstmOperands: differentiable in grad mode.
std::vector<Tensor> composed_lstm_gradients(
    const LstmGrads& grads, const LstmOperands& operands,
    const std::array<bool, LstmOperands::kDifferentiable>& mask);

// The same layer from torch's own differentiable operators.
Tensor3 composed_lstm_layer(const LstmOperands& operands);

}  // namespace fastconv::bindings
