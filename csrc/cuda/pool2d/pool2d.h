// SPDX-License-Identifier: MIT
// max_pool2d and avg_pool2d on a GPU, on raw pointers and a stream.
//
//   window of output (i, j): input (i * stride - padding + r * dilation, j * ... + q * dilation),
//   tap number r * kernel_width + q; taps outside the input are not part of the window
//
// The maximum is torch's: the first of equal values wins, a NaN beats every number and the last NaN
// stays, a window without taps gives -infinity. Offsets hold the number of the winning tap, one
// byte while the window has at most kMaxByteTaps taps, else an int32; those of windows without a
// winner name the first tap that is not above or left of the input. Sums are kept in float32
// (float64 for float64) and rounded once.
//
// Every tensor of a call is dense: contiguous [N, C, H, W], or with channels_last [N, H, W, C].
// No pointer may alias another. Outputs are written completely and never read. A launch only
// enqueues one kernel: it allocates nothing, can be captured in a graph, and gives the same bits on
// every run. With no elements to write it does nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/shapes.h"

namespace fastconv::cuda {

enum class Pool2dElement : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

inline constexpr int64_t kMaxByteTaps = 256;

enum class Pool2dAlgorithm : int {
  kRows,      // 2x2 windows side by side in contiguous rows: 16 bytes of two rows per thread
  kVectors,   // 16 bytes of channels per thread
  kWindows,   // backward of windows that do not overlap: kVectors, a thread per window
  kElements,  // one value per thread, any layout and alignment
  kHuge       // kElements with 64-bit indices
};

struct Pool2dCall {
  Pool2dShape shape;
  bool channels_last;
  Pool2dElement element;
};

struct MaxPool2dForward : Pool2dCall {
  const void* input;
  void* output;
  void* offsets;  // of the output's layout; nullptr: not recorded
};

struct MaxPool2dBackward : Pool2dCall {
  const void* grad_output;
  const void* offsets;
  void* grad_input;
};

// output = source at the winning taps, zero where such a tap lies outside: the adjoint of the
// backward pass.
struct MaxPool2dGather : Pool2dCall {
  const void* source;
  const void* offsets;
  void* output;
};

// Turns offsets into torch's indices, row * in_width + column within the plane.
struct MaxPool2dIndices {
  Pool2dShape shape;
  bool channels_last;
  const void* offsets;
  int64_t* indices;
};

// What an average divides by: divisor_override if not 0, else the taps of the window, with or
// without those in the padding.
struct AvgDivisor {
  bool count_include_pad;
  int64_t divisor_override;
};

struct AvgPool2dForward : Pool2dCall {  // dilation 1
  AvgDivisor divisor;
  const void* input;
  void* output;
};

struct AvgPool2dBackward : Pool2dCall {  // dilation 1
  AvgDivisor divisor;
  const void* grad_output;
  void* grad_input;
};

// Which kernel serves a call whose pointers are all aligned to 16 bytes, or not.
Pool2dAlgorithm choose_pool2d_forward(const Pool2dCall& call, bool aligned);
Pool2dAlgorithm choose_pool2d_backward(const Pool2dCall& call, bool aligned);

cudaError_t launch_max_pool2d_forward(const MaxPool2dForward& call, cudaStream_t stream);
cudaError_t launch_max_pool2d_backward(const MaxPool2dBackward& call, cudaStream_t stream);
cudaError_t launch_max_pool2d_gather(const MaxPool2dGather& call, cudaStream_t stream);
cudaError_t launch_max_pool2d_indices(const MaxPool2dIndices& call, cudaStream_t stream);
cudaError_t launch_avg_pool2d_forward(const AvgPool2dForward& call, cudaStream_t stream);
cudaError_t launch_avg_pool2d_backward(const AvgPool2dBackward& call, cudaStream_t stream);

}  // namespace fastconv::cuda
