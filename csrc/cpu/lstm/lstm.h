// SPDX-License-Identifier: MIT
// One LSTM layer in one direction, over whole sequences.
//
//   i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)     g = tanh(the same with its rows)
//   c_t = f * c_(t-1) + i * g        m_t = o * tanh(c_t)         h_t = m_t, or W_hr m_t
//
// All matrices are row-major and contiguous; N = shape.rows(), B, I, H, P = batch, input, hidden
// and output sizes. The four gates i, f, g, o lie one after another, as torch's weights have them.
// The pointers of one call do not overlap. Called by bindings/lstm_cpu.cpp.
#pragma once

#include <cstdint>

#include "common/shapes.h"

namespace fastconv::cpu {

template <class T>
struct LstmForward {
  LstmShape shape;
  const T* input;      // [N, I]
  const T* h_0;        // [B, P], or nullptr for zeros
  const T* c_0;        // [B, H], or nullptr for zeros
  const T* weight_ih;  // [4, H, I]
  const T* weight_hh;  // [4, H, P]
  const T* bias_ih;    // [4, H], or nullptr
  const T* bias_hh;    // [4, H], or nullptr
  const T* weight_hr;  // [P, H] when shape.projected
  T* output;           // [N, P]
  T* h_n;              // [B, P], each sequence's own last state, or nullptr
  T* c_n;              // [B, H]
  T* gates;            // [N, 4, H] after their activations, for the backward pass, or nullptr
  T* cells;  // [N, H] c_t, for the backward pass; nullptr when gates is; one step: may be c_n
};

// Gradients that are nullptr are not computed; grad_h_0 and grad_c_0 always are.
template <class T>
struct LstmBackward {
  LstmShape shape;
  const T* input;
  const T* h_0;
  const T* c_0;
  const T* weight_ih;
  const T* weight_hh;
  const T* weight_hr;
  const T* output;  // what the forward pass wrote, with gates and cells
  const T* gates;
  const T* cells;
  const T* grad_output;  // [N, P], or nullptr for zeros, as the next two
  const T* grad_h_n;     // [B, P]
  const T* grad_c_n;     // [B, H]
  T* grad_input;         // [N, I]
  T* grad_h_0;           // [B, P]
  T* grad_c_0;           // [B, H]
  T* grad_weight_ih;     // [4, H, I]
  T* grad_weight_hh;     // [4, H, P]
  T* grad_bias;          // [4, H], the gradient of either bias
  T* grad_weight_hr;     // [P, H]
  // [N, 4, H] before the activations: what the gradients of weights and biases are sums of, for
  // callers that add them up over several calls; or nullptr.
  T* grad_gates = nullptr;
};

// Those sums over `rows` rows, from however many calls. Gradients that are nullptr are not
// computed.
struct LstmWeightSums {
  // Floats past the end of grad_gates that must be readable.
  static constexpr int64_t kSlack = 64;
  LstmShape shape;          // its rows, input, hidden and output sizes count
  const float* grad_gates;  // [N, 4, H]
  const float* input;       // [N, I]
  const float* before;      // [N, P] the outputs before, or nullptr for zeros
  float* grad_weight_ih;
  float* grad_weight_hh;
  float* grad_bias;
};

// Floats of scratch memory that one call needs, on the instruction set and threads of this moment.
int64_t lstm_forward_scratch(const LstmForward<float>& call);
int64_t lstm_backward_scratch(const LstmBackward<float>& call);
int64_t lstm_weight_sums_scratch(const LstmWeightSums& call);

// Numbers below the smallest normal float count as zero. The result depends on the instruction set
// but not on the number of threads.
void lstm_forward(const LstmForward<float>& call, float* scratch);
void lstm_backward(const LstmBackward<float>& call, float* scratch);
void lstm_weight_sums(const LstmWeightSums& call, float* scratch);

// Between a padded batch [steps, batch, width] and rows as the shape numbers them: row r of a step
// belongs to sequence order[r] of the batch. What has no row becomes zero.
template <class T>
void lstm_rows_from_padded(const LstmShape& shape, const int64_t* order, int64_t width,
                           const T* padded, T* rows);
template <class T>
void lstm_rows_to_padded(const LstmShape& shape, const int64_t* order, int64_t width, const T* rows,
                         T* padded);

}  // namespace fastconv::cpu
