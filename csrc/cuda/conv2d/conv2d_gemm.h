// SPDX-License-Identifier: MIT
// Forward and grad input as one matrix product on tensor cores. For each of several phases
//
//   dest[n, i * dest_step + dest_first, j * ..., o] = activation(bias[o] +
//       sum_{r, q, c} weights[o, r, q, c] *
//       source[n, i * source_step + first + r * tap_step, j * ... + q * tap_step, c])
//
// over rows i, columns j, taps (r, q) of the phase; pixels outside of the source count as zeros.
// Windows of the result may be pooled before they are stored: the rows of the product then go from
// window to window, the taps of each one after the other, and i and j count windows.
// Forward is one phase. Grad input with stride s is s * s phases: the input pixels that agree in
// their position modulo the stride see the same taps, and see them like a dense convolution of
// grad_output. Source rows are vectors along the channels, 16-byte aligned; the weights are packed
// (conv2d_layout.h); dest has any strides.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/activation.h"
#include "common/shapes.h"
#include "cuda/common/block_pool.h"
#include "cuda/common/divmod.h"
#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

inline constexpr int kMaxPhases = 16;        // strides up to 4 x 4
inline constexpr int kMaxGemmTapsSide = 16;  // kernel rows or columns: bits of half a validity mask

// One dimension of a phase: rows, or columns. Counts pixels, so 32 bits do.
struct GemmAxis {
  int32_t size;   // positions i, in windows
  int32_t taps;   // taps r
  int32_t first;  // source position of i = 0, r = 0; may be negative
  int32_t dest_first;
};

// Pixels of the result that become one: a power of two, for a strip of 16 rows to hold whole ones.
struct GemmWindow {
  BlockPool pool;  // kNone: one pixel
  int32_t log_height;
  int32_t log_width;

  __host__ __device__ int32_t log_taps() const { return log_height + log_width; }
  __host__ __device__ int32_t taps() const { return 1 << log_taps(); }
};

inline constexpr int kMaxLogWindowTaps = 4;

struct GemmPhase {
  GemmAxis rows;
  GemmAxis columns;
  FastDivmod pixels_divisor;   // by rows.size * columns.size
  FastDivmod columns_divisor;  // by columns.size
  FastDivmod taps_divisor;     // by columns.taps
  int32_t vectors;             // along the reduction: taps * channel vectors
  int64_t weights;             // first vector of the phase in the packed weights
};

struct ConvGemm {
  const void* source;
  Strides4 source_strides;  // in elements; channel is that of a group
  int32_t source_height;
  int32_t source_width;
  int32_t source_step_row;
  int32_t source_step_column;
  int32_t tap_step_row;
  int32_t tap_step_column;
  const void* weights;         // vectors [groups, phases: [channels, taps, channel vectors]]
  int64_t group_weights;       // vectors of a group
  FastDivmod vectors_divisor;  // by the channel vectors of a group
  void* dest;
  Strides4 dest_strides;
  int32_t dest_step_row;
  int32_t dest_step_column;
  bool vector_stores;  // dest rows of channels are contiguous and 16-byte aligned
  int32_t batch;
  int32_t groups;
  int32_t channels;  // of the result, per group
  const void* bias;  // [groups * channels] or nullptr
  Activation activation;
  float negative_slope;
  GemmWindow window;
  uint8_t* offsets;  // winners of max pooling, numbered as the elements of dest; or nullptr
  int32_t phase_count;
  GemmPhase phases[kMaxPhases];  // a kernel parameter: at most 4 KB with the rest

  // Of the product, for a phase.
  __host__ __device__ int64_t rows(const GemmPhase& phase) const {
    return static_cast<int64_t>(batch) * phase.rows.size * phase.columns.size << window.log_taps();
  }
};

// Precondition: fewer than 2^31 rows in every phase.
cudaError_t launch_conv2d_gemm(const ConvGemm& gemm, Conv2dMath math, int tile,
                               cudaStream_t stream);

// One per kind of arithmetic, each in a file of its own.
cudaError_t launch_conv2d_gemm_bfloat16(const ConvGemm& gemm, int tile, cudaStream_t stream);
cudaError_t launch_conv2d_gemm_float16(const ConvGemm& gemm, int tile, cudaStream_t stream);
cudaError_t launch_conv2d_gemm_tf32(const ConvGemm& gemm, int tile, cudaStream_t stream);
cudaError_t launch_conv2d_gemm_tf32x3(const ConvGemm& gemm, int tile, cudaStream_t stream);

}  // namespace fastconv::cuda
