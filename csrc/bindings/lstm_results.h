// SPDX-License-Identifier: MIT
// What the operators of an LSTM layer return, whatever device computes it: sizes, allocation, the
// answers that need no kernel, and the checks of what comes back to the backward pass.
#pragma once

#include <torch/library.h>

#include <array>
#include <vector>

#include "bindings/lstm_args.h"

namespace fastconv::bindings {

// Sizes of an input or output of so many features, in the caller's form.
std::vector<int64_t> lstm_sizes(const LstmCall& call, int64_t width);

// Rows that the saved tensors have room for; with lengths more than are used, so that their sizes
// do not depend on values.
int64_t lstm_saved_rows(const LstmCall& call);

// Undefined for an absent or undefined tensor.
Tensor dense_or_undefined(const OptionalTensor& tensor);

// output, h_n and c_n of a batch without a single row.
Tensor3 lstm_results_without_rows(const LstmCall& call, const LstmOperands& operands);

void check_lstm_backward_args(const LstmCall& call, const LstmGrads& grads, const LstmSaved& saved,
                              const Tensor& input);

// The gradients of one call, in the order of LstmOperands; those not asked for stay undefined.
struct LstmGradients {
  Tensor input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;

  Tensor8 as_tuple() const {
    return {input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr};
  }
};

LstmGradients lstm_gradients_without_rows(const LstmCall& call, const LstmGrads& grads,
                                          const at::TensorOptions& options,
                                          std::array<bool, 8> mask);

// Room for all but the input's: h_0 and c_0 always, bias_ih for either bias.
LstmGradients empty_lstm_gradients(const LstmCall& call, const at::TensorOptions& options,
                                   std::array<bool, 8> mask);

// From bias_ih to the biases that were asked for.
void share_bias_gradient(LstmGradients* gradients, std::array<bool, 8> mask);

// The registered operators of a device, which differ in what computes them alone.
template <Tensor5 (*Forward)(const LstmOperands&, bool training),
          LstmGradients (*Backward)(const LstmGrads&, const LstmOperands&, const LstmSaved&,
                                    std::array<bool, 8>)>
struct LstmOperators {
  static Tensor3 layer(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                       const Tensor& weight_ih, const Tensor& weight_hh,
                       const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                       const OptionalTensor& weight_hr, const OptionalTensor& lengths,
                       const OptionalTensor& batch_sizes, bool reverse) {
    const auto [output, h_n, c_n, gates, cells] =
        Forward({input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, lengths,
                 batch_sizes, reverse},
                /*training=*/false);
    return {output, h_n, c_n};
  }

  static Tensor5 layer_training(const Tensor& input, const OptionalTensor& hx,
                                const OptionalTensor& cx, const Tensor& weight_ih,
                                const Tensor& weight_hh, const OptionalTensor& bias_ih,
                                const OptionalTensor& bias_hh, const OptionalTensor& weight_hr,
                                const OptionalTensor& lengths, const OptionalTensor& batch_sizes,
                                bool reverse) {
    return Forward({input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, lengths,
                    batch_sizes, reverse},
                   /*training=*/true);
  }

  static Tensor8 layer_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                const OptionalTensor& grad_c_n, const Tensor& input,
                                const OptionalTensor& hx, const OptionalTensor& cx,
                                const Tensor& weight_ih, const Tensor& weight_hh,
                                const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                const OptionalTensor& weight_hr, const OptionalTensor& lengths,
                                const OptionalTensor& batch_sizes, bool reverse,
                                const Tensor& output, const Tensor& gates, const Tensor& cells,
                                std::array<bool, 8> output_mask) {
    return Backward({grad_output, grad_h_n, grad_c_n},
                    {input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, lengths,
                     batch_sizes, reverse},
                    {output, gates, cells}, output_mask)
        .as_tuple();
  }

  static void add_to(torch::Library& m) {
    m.impl("lstm_layer", &layer);
    m.impl("_lstm_layer_training", &layer_training);
    m.impl("_lstm_layer_backward", &layer_backward);
  }
};

}  // namespace fastconv::bindings
