// SPDX-License-Identifier: MIT
// conv_block2d's launchers for Python. Strides in elements; sizes as the first ten numbers of every
// function, `activation` and `pool` numbered as the enums.
#include "cuda/conv_block2d/conv_block2d.h"
#include "tests/cuda_shim/emulator.h"
#include "tests/cuda_shim/entry.h"

namespace {

using namespace fastconv;

cuda::Device device() {
  const cuda_shim::Options& o = cuda_shim::options();
  return {o.compute_capability, o.multiprocessors, 96 * 1024, 100 * 1024};
}

}  // namespace

#define FC_BLOCK_SIZES                                                                            \
  int64_t batch, int64_t in_channels, int64_t height, int64_t width, int64_t channels,            \
      int64_t kernel_height, int64_t kernel_width, int64_t padding_height, int64_t padding_width, \
      int64_t activation, double slope, int64_t pool
#define FC_BLOCK_SHAPE                                                  \
  cuda::ConvBlock2dShape {                                              \
    {batch,                                                             \
     in_channels,                                                       \
     height,                                                            \
     width,                                                             \
     channels,                                                          \
     height + 2 * padding_height - kernel_height + 1,                   \
     width + 2 * padding_width - kernel_width + 1,                      \
     kernel_height,                                                     \
     kernel_width,                                                      \
     1,                                                                 \
     1,                                                                 \
     padding_height,                                                    \
     padding_width,                                                     \
     1,                                                                 \
     1,                                                                 \
     1},                                                                \
        static_cast<Activation>(activation), static_cast<float>(slope), \
        static_cast<cuda::BlockPool>(pool)                              \
  }

FC_ENTRY int64_t fastconv_conv_block2d_applies(FC_BLOCK_SIZES) {
  return cuda::conv_block2d_applies(FC_BLOCK_SHAPE);
}

FC_ENTRY int fastconv_conv_block2d_forward(FC_BLOCK_SIZES, const float* input, int64_t batch_stride,
                                           int64_t channel_stride, int64_t row_stride,
                                           int64_t column_stride, const float* weight,
                                           const float* bias, float* output, uint8_t* offsets) {
  return cuda::launch_conv_block2d_forward(
      {FC_BLOCK_SHAPE,
       device(),
       input,
       {batch_stride, channel_stride, row_stride, column_stride},
       weight,
       bias,
       output,
       offsets},
      nullptr);
}

// The gradients of weight and bias need workspace only if `weight_wanted`.
FC_ENTRY int64_t fastconv_conv_block2d_backward_workspace(FC_BLOCK_SIZES, int weight_wanted) {
  cuda::ConvBlock2dBackward call{};
  call.shape = FC_BLOCK_SHAPE;
  call.device = device();
  float any;
  call.grad_weight = weight_wanted ? &any : nullptr;
  return cuda::conv_block2d_backward_workspace_bytes(call);
}

FC_ENTRY int fastconv_conv_block2d_backward(FC_BLOCK_SIZES, const float* grad_output,
                                            const float* output, const uint8_t* offsets,
                                            const float* input, int64_t batch_stride,
                                            int64_t channel_stride, int64_t row_stride,
                                            int64_t column_stride, const float* weight,
                                            const float* bias, float* grad_input,
                                            float* grad_weight, float* grad_bias, void* workspace) {
  return cuda::launch_conv_block2d_backward(
      {FC_BLOCK_SHAPE,
       device(),
       grad_output,
       output,
       offsets,
       input,
       {batch_stride, channel_stride, row_stride, column_stride},
       weight,
       bias,
       grad_input,
       grad_weight,
       grad_bias,
       workspace},
      nullptr);
}
