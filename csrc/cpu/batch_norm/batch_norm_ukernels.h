// SPDX-License-Identifier: MIT
// The batch normalisation kernels of one ISA. Those on planes see one channel, or apply to a few
// neighbouring ones, whose values lie in runs of pixels; those on rows see all channels of
// neighbouring pixels.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// Images of neighbouring channels: `channels` times `pixels` floats each, image_stride apart. Or
// pixels of all channels: `rows` times `channels` floats, dense. Every pointer of a call is laid
// out like this.
struct NormPlanes {
  int64_t images;
  int64_t image_stride;
  int64_t pixels;
  int64_t channels;  // 1 where values are summed
};
struct NormRows {
  int64_t rows;
  int64_t channels;
};

// Per channel: y = (x - mean) * scale + shift, and in the backward pass, with g = 0 where a relu
// follows and y <= 0, grad_input = g * scale + (x - mean) * slope + offset.
struct NormCoefficients {
  const float* mean;
  const float* scale;
  const float* shift;
  const float* slope;
  const float* offset;

  NormCoefficients of(int64_t channel) const {
    return {mean + channel, scale + channel, shift + channel, slope + channel, offset + channel};
  }
};

// Template over the place, planes or rows: sums are one per channel seen.
template <class Place>
struct NormKernels {
  // sum += x - center, squares += (x - center)^2.
  void (*moments)(const Place&, const float* input, const float* center, double* sum,
                  double* squares);
  // Indexed by whether a relu follows.
  void (*normalize[2])(const Place&, const NormCoefficients&, const float* input, float* output);
  // sum += g, dot += g * (x - mean).
  void (*grad_sums[2])(const Place&, const NormCoefficients&, const float* input,
                       const float* grad_output, double* sum, double* dot);
  // Indexed by whether a relu follows, then by whether slope and offset count; without either,
  // the input is not read.
  void (*grad_input[2][2])(const Place&, const NormCoefficients&, const float* input,
                           const float* grad_output, float* grad_input);
};

struct BatchNormKernels {
  NormKernels<NormPlanes> planes;
  NormKernels<NormRows> rows;
};

extern const BatchNormKernels kBatchNormKernelsScalar;
extern const BatchNormKernels kBatchNormKernelsAvx2;
extern const BatchNormKernels kBatchNormKernelsAvx512;

inline const BatchNormKernels& batch_norm_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kBatchNormKernelsAvx512
         : isa == Isa::kAvx2 ? kBatchNormKernelsAvx2
                             : kBatchNormKernelsScalar;
}

}  // namespace fastconv::cpu
