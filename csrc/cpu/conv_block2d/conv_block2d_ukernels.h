// SPDX-License-Identifier: MIT
// What conv_block2d needs from an ISA: pooling a strip of the convolution's output while it is in
// L1, the derivative of the activation, and the two gradients of a sparse convolution output.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// One row pair of one channel: out[i] = pool of columns 2i and 2i + 1 of both rows. Whole vectors
// of both rows are read; writes exactly `cells` outputs.
struct PoolPixels {
  const float* top;
  const float* bottom;
  int64_t cells;
  float slope;  // of leaky_relu
  float* out;
  uint8_t* offsets;  // winning tap 0 .. 3, or nullptr
};

// One row pair of a block of channels, pixels `pixel_pitch` apart and channels contiguous. Reads
// and writes the first `channels` only.
struct PoolChannels {
  const float* top;
  const float* bottom;
  int64_t pixel_pitch;
  int64_t cells;
  int64_t channels;
  float slope;
  float* out;  // [cells, channels]
  uint8_t* offsets;
  int64_t offset_pitch;  // between cells
};

// scaled[i] = grad[i] * activation'(where the activation gave output[i]); *sum += all of them.
struct ScaleGrad {
  const float* grad;
  const float* output;
  int64_t count;
  float slope;
  float* scaled;
  float* sum;
};

// One row pair of one channel behind an average: spread[row][j] = grad[j / 2] / 4 * activation'(z),
// for the convolution output z of both rows; *sum += all of them. Reads whole vectors of z and
// writes exactly 2 * cells floats per row.
struct SpreadGrad {
  const float* z_top;
  const float* z_bottom;
  const float* grad;
  int64_t cells;
  float slope;
  float* top;
  float* bottom;
  float* sum;
};

// As SpreadGrad, one row pair of a block of channels: pixels lie z_pitch apart in z and grad_pitch
// apart in the gradients, channels are contiguous. Reads and writes the first `channels` only.
struct SpreadGradChannels {
  const float* z_top;
  const float* z_bottom;
  int64_t z_pitch;
  const float* grad;  // of the cells
  int64_t grad_pitch;
  int64_t cells;
  int64_t channels;
  float slope;
  float* top;
  float* bottom;
};

// The gradients behind maxima at the taps that won, zero at the others, of one channel:
//   spread[2 * i + t / 2][2 * j + t % 2] = t == offsets[i * cells + j] ? grad[i * cells + j] : 0
// for t = 0 .. 3. Writes exactly 2 * cells floats per row, rows side by side without a gap.
struct SpreadWinners {
  const float* grad;
  const uint8_t* offsets;
  int64_t rows;   // of windows
  int64_t cells;  // per row
  float* spread;
};

// Gradient of one output channel's weights, sparse: value i of the gradient sits at the pixel whose
// patch starts at input[starts[i] + steps[offsets[i * offset_pitch]]] (max pooling) or
// input[starts[i]] (offsets == nullptr). The patch is kernel_height rows of whole vectors.
//   sums[r * sum_pitch + v] += sum_i grad[i] * input[start(i) + r * row_pitch + v]
// Whole vectors of the input are read and of the sums written.
struct SparseWeightTile {
  int64_t count;
  const float* grad;
  const int32_t* starts;
  const uint8_t* offsets;
  int64_t offset_pitch;
  const int32_t* steps;  // [4]
  const float* input;
  int64_t row_pitch;
  float* sums;
  int64_t sum_pitch;
  int64_t grad_channel;  // dense_weight: between the gradients of two output channels,
  int64_t sum_channel;   // and between their sums
};

// The gradient values of a convolution's output that are not zero, by pixel. Pixels are numbered
// window by window, a window's in the order of its taps: pixel p holds the first counts[p] values
// from grads + p * pitch on, and weights says where the weights of their channels start.
struct GradLists {
  int64_t pitch;
  int32_t* counts;
  float* grads;
  int32_t* weights;
};

// Makes the lists of `cells` windows, whose maxima have gradients grad[cell * grad_pitch + o] and
// came from taps offsets[cell * channels + o]. Writes up to a vector past the last pixel's list.
struct ListWinners {
  const float* grad;
  int64_t grad_pitch;
  const uint8_t* offsets;
  int64_t cells;
  int64_t channels;
  int32_t weight_channel;  // between the weights of two channels
  GradLists lists;
};

// Gradient of the input, sparse: pixel (i, j) of the convolution's output has its values in the
// lists.
//   strip[(i + r) * row_pitch + j * column_pitch + v] += grads[e] *
//                                                   weights[lists.weights[e] + r * weight_pitch +
//                                                   v]
// for r < kernel_height and v < vectors * lanes, of which the last vector keeps `tail` lanes.
struct SparseInputTile {
  int64_t rows;
  int64_t columns;
  GradLists lists;
  const float* weights;
  int64_t weight_pitch;
  float* strip;
  int64_t row_pitch;
  int64_t column_pitch;
  int64_t tail;
};

// Gradient of the input, dense: pixel (i, j) of the convolution's output holds one value per
// channel at grad + (i * columns + j) * grad_pitch; the rest is as in SparseInputTile.
struct DenseInputTile {
  int64_t rows;
  int64_t columns;
  int64_t channels;
  const float* grad;
  int64_t grad_pitch;
  const float* weights;
  int64_t channel_pitch;  // between the weights of two channels
  int64_t weight_pitch;
  float* strip;
  int64_t row_pitch;
  int64_t column_pitch;
  int64_t tail;
};

inline constexpr int kMaxBlockKernelHeight = 7;
inline constexpr int kMaxBlockVectors = 4;

using PoolPixelsFn = void (*)(const PoolPixels&);
using PoolChannelsFn = void (*)(const PoolChannels&);
using ScaleGradFn = void (*)(const ScaleGrad&);
using SpreadGradFn = void (*)(const SpreadGrad&);
using SpreadGradChannelsFn = void (*)(const SpreadGradChannels&);
using SpreadWinnersFn = void (*)(const SpreadWinners&);
using SparseWeightFn = void (*)(const SparseWeightTile&);
using ListWinnersFn = void (*)(const ListWinners&);
using SparseInputFn = void (*)(const SparseInputTile&);
using DenseInputFn = void (*)(const DenseInputTile&);

// Tables by activation are in the order of Activation; by pool in the order of BlockPool.
struct ConvBlock2dKernels {
  int64_t lanes;
  PoolPixelsFn pool_pixels[2][5];
  PoolChannelsFn pool_channels[2][5];
  ScaleGradFn scale_grad[5];
  SpreadGradFn spread_grad[5];
  SpreadGradChannelsFn spread_grad_channels[5];
  SpreadWinnersFn spread_winners;
  // [kernel_height - 1][vectors - 1]; nullptr where the registers do not suffice.
  SparseWeightFn sparse_weight[kMaxBlockKernelHeight][kMaxBlockVectors];
  // As sparse_weight without offsets, for several output channels at once, which share the patches;
  // dense_channels[...] says how many.
  SparseWeightFn dense_weight[kMaxBlockKernelHeight][kMaxBlockVectors];
  int64_t dense_channels[kMaxBlockKernelHeight][kMaxBlockVectors];
  ListWinnersFn list_winners;
  SparseInputFn sparse_input[kMaxBlockKernelHeight][kMaxBlockVectors];
  DenseInputFn dense_input[kMaxBlockKernelHeight][kMaxBlockVectors];
};

extern const ConvBlock2dKernels kConvBlock2dKernelsScalar;
extern const ConvBlock2dKernels kConvBlock2dKernelsAvx2;
extern const ConvBlock2dKernels kConvBlock2dKernelsAvx512;

inline const ConvBlock2dKernels& conv_block2d_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kConvBlock2dKernelsAvx512
         : isa == Isa::kAvx2 ? kConvBlock2dKernelsAvx2
                             : kConvBlock2dKernelsScalar;
}

}  // namespace fastconv::cpu
