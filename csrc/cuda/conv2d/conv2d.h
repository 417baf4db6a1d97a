// SPDX-License-Identifier: MIT
// conv2d on a GPU: forward and the two gradients on raw pointers and a stream.
//
//   output[n, o, i, j] = activation(bias[o] + sum_{c, r, q} weight[o, c, r, q] *
//                        input[n, c, i * stride - padding + r * dilation, j * ... + q * dilation])
//
// The forward pass may pool these values before it stores them, if conv2d_pools says so.
//
// A call is filled in but for its plan and workspace, planned by plan_conv2d_*, given a workspace
// of plan.workspace_bytes (256-byte aligned, uninitialised) and launched. Tensors of one call share
// an element type and may have any strides; bias and its gradient are contiguous. No pointer may
// alias another. Outputs are written completely and never read. A launch only enqueues kernels: it
// allocates nothing, waits for nothing, can be captured in a graph, and its results are the same
// bits on every run on the same kind of GPU. With no elements to write it does nothing.
//
// Pixels of the padding are zeros. Most kernels multiply them like others, so that against an
// infinite or NaN weight they give NaN; those that look at each pixel by itself (conv2d_general,
// depthwise kernels of unusual sizes) leave them out. torch's own kernels differ in the same way.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/activation.h"
#include "common/shapes.h"
#include "cuda/common/block_pool.h"
#include "cuda/common/device.h"

namespace fastconv::cuda {

enum class Conv2dElement : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

enum class Conv2dAlgorithm : int {
  kGeneral,       // plain sums in float32 (float64 for float64), any shape, 64-bit numbers
  kImplicitGemm,  // tensor cores on channels-last vectors; fewer than 2^31 pixels, and but for the
                  // weight gradient at most 16 taps a side
  kDepthwise,     // one input channel per group, float32 sums
  kDirect,        // few channels, float32: the kernels of conv_block2d
};

// What tensor cores multiply. float32 products are either rounded to tf32 (11 significant bits) or
// split into two tf32 terms each, three products of which give float32's accuracy.
enum class Conv2dMath : int { kBFloat16, kFloat16, kTf32, kTf32x3 };

struct Conv2dPlan {
  Conv2dAlgorithm algorithm;
  Conv2dMath math;          // of kImplicitGemm
  int tile;                 // of kImplicitGemm: a number from conv2d_tiles.h
  int64_t splits;           // of the weight gradient: partial sums along the pixels
  int64_t workspace_bytes;  // what the launch needs
};

struct Conv2dCall {
  Conv2dShape shape;
  Conv2dElement element;
  bool allow_tf32;  // float32 may be rounded to tf32, as torch.backends.cudnn.allow_tf32 says
  Device device;
  Conv2dPlan plan;
  void* workspace;
};

// Pooling of the output in windows side by side: as far apart as they are large, from the first
// pixel on; what is left behind the last whole window is not computed. The result is that of
// pool2d.h on the output in the call's element type, to the bit.
struct Conv2dPool {
  BlockPool kind;  // kNone: height and width are not read
  int64_t height;
  int64_t width;
};

struct Conv2dForward : Conv2dCall {
  const void* input;
  Strides4 input_strides;
  const void* weight;  // [out_channels, in_channels / groups, kh, kw]
  Strides4 weight_strides;
  const void* bias;  // [out_channels] or nullptr
  void* output;      // of pooled pixels where the call pools
  Strides4 output_strides;
  Activation activation;
  float negative_slope;  // of the leaky ReLU
  Conv2dPool pool;
  uint8_t* offsets;  // the tap that won at output[i] goes to offsets[i]; nullptr: not recorded

  bool pools() const { return pool.kind != BlockPool::kNone; }
  int64_t pooled_height() const {
    return pools() ? shape.out_height / pool.height : shape.out_height;
  }
  int64_t pooled_width() const { return pools() ? shape.out_width / pool.width : shape.out_width; }
};

struct Conv2dGradInput : Conv2dCall {
  const void* grad_output;
  Strides4 grad_output_strides;
  const void* weight;
  Strides4 weight_strides;
  void* grad_input;
  Strides4 grad_input_strides;
};

struct Conv2dGradWeight : Conv2dCall {
  const void* grad_output;
  Strides4 grad_output_strides;
  const void* input;
  Strides4 input_strides;
  void* grad_weight;
  Strides4 grad_weight_strides;
  void* grad_bias;  // [out_channels] or nullptr
};

// True for the calls without pooling, and for those whose pooling the forward kernel does itself:
// where tensor cores serve the convolution and the taps of a window are a power of two, at most 16.
// Reads what a plan does, but not the output. Precondition of planning and launching a forward
// pass.
bool conv2d_pools(const Conv2dForward& call);

// Plans depend on shape, strides, alignment, element type and device, not on what is in memory.
Conv2dPlan plan_conv2d_forward(const Conv2dForward& call);
Conv2dPlan plan_conv2d_grad_input(const Conv2dGradInput& call);
Conv2dPlan plan_conv2d_grad_weight(const Conv2dGradWeight& call);

// What one algorithm needs for a call, or a plan of kGeneral where it cannot serve it; for tests
// and measurements. `tile` < 0 leaves the choice of the tile, `splits` < 1 that of the splits.
Conv2dPlan plan_conv2d_forward_as(const Conv2dForward& call, Conv2dAlgorithm algorithm, int tile);
Conv2dPlan plan_conv2d_grad_input_as(const Conv2dGradInput& call, Conv2dAlgorithm algorithm,
                                     int tile);
Conv2dPlan plan_conv2d_grad_weight_as(const Conv2dGradWeight& call, Conv2dAlgorithm algorithm,
                                      int tile, int64_t splits);

cudaError_t launch_conv2d_forward(const Conv2dForward& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_input(const Conv2dGradInput& call, cudaStream_t stream);
cudaError_t launch_conv2d_grad_weight(const Conv2dGradWeight& call, cudaStream_t stream);

}  // namespace fastconv::cuda
