// SPDX-License-Identifier: MIT
// One LSTM layer in one direction, over whole sequences: the contract of cpu/lstm/lstm.h on device
// pointers, for float, double, __nv_bfloat16 and __half (T), with states between steps in S =
// float, or double for double. Two forms of the recurrence, chosen on the host by choose_lstm_path:
//
//   kSteps       one product per step, h W_hh^T, whose blocks finish the units of their tile
//   kPersistent  one kernel for all steps: a block keeps W_hh on chip and a few sequences to itself
//
// Either way the products over all steps stand outside: x W_ih^T before the first step, and in the
// backward pass the gradients of inputs, weights and biases after the last. float32 sums run over
// exact terms, unless allow_tf32 (compute capability 8.0) lets tensor cores round operands to tf32.
//
// All matrices are row-major and contiguous; only `gates` must be aligned to 16 bytes. `gates` and
// `cells`, which the forward pass leaves to the backward pass, keep the four gates of a unit
// together: [N, H, 4].
// shape.row_start is host memory; everything is ordered by the stream and can be captured in a
// graph (the lengths become part of the graph). Nothing is allocated; no result depends on the GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/shapes.h"
#include "cuda/common/device.h"

namespace fastconv::cuda {

enum class LstmPath { kSteps, kPersistent };

// `element_bytes` is sizeof(T). Tensor cores (16-bit types) need compute capability 8.0; bindings
// compute in float32 below that.
LstmPath choose_lstm_path(const LstmShape& shape, int64_t element_bytes, const Device& device);

template <class T>
struct LstmForward {
  LstmShape shape;
  LstmPath path;
  bool allow_tf32;     // float32 products outside the persistent kernel may round operands to tf32
  const T* input;      // [N, I]
  const T* h_0;        // [B, P], or nullptr for zeros
  const T* c_0;        // [B, H], or nullptr for zeros
  const T* weight_ih;  // [4, H, I]
  const T* weight_hh;  // [4, H, P]
  const T* bias_ih;    // [4, H], or nullptr
  const T* bias_hh;    // [4, H], or nullptr
  const T* weight_hr;  // [P, H] when shape.projected
  T* output;           // [N, P]
  T* h_n;              // [B, P]
  T* c_n;              // [B, H]
  T* gates;            // [N, H, 4] after their activations, or nullptr
  T* cells;            // [N, H], nullptr when gates is
  void* workspace;     // lstm_forward_workspace_bytes, aligned to 256
};

// Gradients that are nullptr are not computed; grad_h_0 and grad_c_0 always are.
template <class T>
struct LstmBackward {
  LstmShape shape;
  LstmPath path;
  bool allow_tf32;  // float32 products outside the persistent kernel may round operands to tf32
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
  void* workspace;       // lstm_backward_workspace_bytes, aligned to 256
};

// Preconditions of all: shape.rows() > 0; path is kPersistent only where choose_lstm_path may say
// so.
template <class T>
int64_t lstm_forward_workspace_bytes(const LstmForward<T>& call);
template <class T>
int64_t lstm_backward_workspace_bytes(const LstmBackward<T>& call);
template <class T>
cudaError_t launch_lstm_forward(const LstmForward<T>& call, cudaStream_t stream);
template <class T>
cudaError_t launch_lstm_backward(const LstmBackward<T>& call, cudaStream_t stream);

// Between a padded batch [steps, batch, width] and rows as the shape numbers them, as in
// cpu/lstm/lstm.h; `order` [batch] and `row_start` [steps + 1] (or nullptr) are device memory.
template <class T>
struct LstmRowMove {
  LstmShape shape;
  const int64_t* order;
  const int64_t* row_start;
  int64_t width;
};
template <class T>
cudaError_t launch_lstm_rows_from_padded(const LstmRowMove<T>& move, const T* padded, T* rows,
                                         cudaStream_t stream);
template <class T>
cudaError_t launch_lstm_rows_to_padded(const LstmRowMove<T>& move, const T* rows, T* padded,
                                       cudaStream_t stream);

// Puts `count` numbers of host memory into device memory as arguments of kernels: unlike a copy, it
// needs no pinned memory and may be captured. The numbers may go away after the call.
cudaError_t launch_store_integers(const int64_t* host, int64_t count, int64_t* device,
                                  cudaStream_t stream);

}  // namespace fastconv::cuda
