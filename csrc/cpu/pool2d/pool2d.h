// SPDX-License-Identifier: MIT
// max_pool2d and avg_pool2d on raw pointers: float32 by vector kernels on the active ISA, bfloat16
// by the same on widened planes, float64 by the plain loops of pool2d_reference.h.
//
//   window of output (i, j): input (i * stride - padding + r * dilation, j * ... + q * dilation),
//   tap number r * kernel_width + q; taps outside the input are not part of the window
//
// The maximum is torch's: the first of equal values wins, a NaN beats every number and the last NaN
// stays, a window without taps gives -infinity. A training pass records per output the tap number
// that won ("offset"), one byte while the window has at most 256 taps. Offsets of windows without a
// winner name the first tap that is not above or left of the input; it may lie outside the input.
//
// Tensors are [batch, channels, height, width]. All tensors of a float call have contiguous columns
// (stride 1), or, with channels_last, contiguous channels. No pointer may alias another; outputs
// are written completely, never read first. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "common/shapes.h"

namespace fastconv::cpu {

enum class OffsetType : int { kNone, kUint8, kInt32 };

inline constexpr int64_t kMaxByteTaps = 256;

// The type of the offsets that a window of `taps` taps needs. Precondition: taps < 2^31.
inline OffsetType offset_type_of(int64_t taps) {
  return taps <= kMaxByteTaps ? OffsetType::kUint8 : OffsetType::kInt32;
}

// Whether a pass over float tensors should set `stream` in its call: results then go to memory past
// the caches where the kernel can, without reading the lines first. True when input and output
// together exceed what a core finds in the last-level cache, so that little of the result would
// still be there for whoever reads it. Results are the same either way.
inline constexpr int64_t kStreamBytes = int64_t{48} << 20;

inline bool exceeds_caches(const Pool2dShape& s) {
  const int64_t planes = s.batch * s.channels;
  const int64_t pixels = s.in_height * s.in_width + s.out_height * s.out_width;
  return planes * pixels * static_cast<int64_t>(sizeof(float)) > kStreamBytes;
}

template <typename T>
struct MaxPool2dForward {
  Pool2dShape shape;
  bool channels_last;
  const T* input;
  Strides4 input_strides;
  T* output;
  Strides4 output_strides;
  void* offsets;  // strides of the output, type offset_type_of(taps); nullptr: not recorded
  bool stream = false;
};

template <typename T>
struct MaxPool2dBackward {
  Pool2dShape shape;
  bool channels_last;
  const T* grad_output;
  Strides4 grad_output_strides;
  const void* offsets;
  Strides4 offset_strides;
  T* grad_input;
  Strides4 grad_input_strides;
  bool stream = false;
  int64_t first_element = 0;  // of grad_input's tensor: the one `grad_input` points at
};

// output = source at the winning taps: the adjoint of the backward pass.
template <typename T>
struct MaxPool2dGather {
  Pool2dShape shape;
  const T* source;
  Strides4 source_strides;
  const void* offsets;
  Strides4 offset_strides;
  T* output;
  Strides4 output_strides;
};

// Turns offsets into torch's indices, row * in_width + column within the plane.
struct MaxPool2dIndices {
  Pool2dShape shape;
  const void* offsets;
  Strides4 offset_strides;
  int64_t* indices;
  Strides4 index_strides;
};

// What an average divides by: divisor_override if not 0, else the taps of the window, with or
// without those in the padding.
struct AvgDivisor {
  bool count_include_pad;
  int64_t divisor_override;
};

template <typename T>
struct AvgPool2dForward {
  Pool2dShape shape;  // dilation 1
  bool channels_last;
  AvgDivisor divisor;
  const T* input;
  Strides4 input_strides;
  T* output;
  Strides4 output_strides;
  bool stream = false;
};

template <typename T>
struct AvgPool2dBackward {
  Pool2dShape shape;  // dilation 1
  bool channels_last;
  AvgDivisor divisor;
  const T* grad_output;
  Strides4 grad_output_strides;
  T* grad_input;
  Strides4 grad_input_strides;
  bool stream = false;
};

// Instantiated for float and double.
template <typename T>
void max_pool2d_forward(const MaxPool2dForward<T>& call);
template <typename T>
void max_pool2d_backward(const MaxPool2dBackward<T>& call);
template <typename T>  // also for uint16_t, the bits of bfloat16
void max_pool2d_gather(const MaxPool2dGather<T>& call);
void max_pool2d_indices(const MaxPool2dIndices& call);

template <typename T>
void avg_pool2d_forward(const AvgPool2dForward<T>& call);

// Floats of scratch that avg_pool2d_backward<float> wants; 0 for most windows.
int64_t avg_pool2d_backward_scratch(const Pool2dShape& shape, const AvgDivisor& divisor);
template <typename T>
void avg_pool2d_backward(const AvgPool2dBackward<T>& call, float* scratch);

// The same on bfloat16, whose bits are given as uint16_t: averages and gradients are summed in
// float32 and rounded once. All tensors are dense [batch, channels, height, width]; channels_last
// is false. `scratch` holds pool2d_bfloat16_scratch floats.
int64_t pool2d_bfloat16_scratch(const Pool2dShape& shape);
void max_pool2d_forward(const MaxPool2dForward<uint16_t>& call, float* scratch);
void max_pool2d_backward(const MaxPool2dBackward<uint16_t>& call, float* scratch);
void avg_pool2d_forward(const AvgPool2dForward<uint16_t>& call, float* scratch);
void avg_pool2d_backward(const AvgPool2dBackward<uint16_t>& call, float* scratch);

}  // namespace fastconv::cpu
