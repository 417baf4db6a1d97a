// SPDX-License-Identifier: MIT
// pool2d's launchers for Python. `shape` is Pool2dShape's fields in their order.
#include <cstring>

#include "cuda/pool2d/pool2d.h"
#include "tests/cuda_shim/entry.h"

using namespace fastconv;
using namespace fastconv::cuda;

namespace {

Pool2dShape shape_of(const int64_t* fields) {
  Pool2dShape shape;
  static_assert(sizeof(shape) == 14 * sizeof(int64_t));
  std::memcpy(&shape, fields, sizeof(shape));
  return shape;
}

Pool2dCall call_of(const int64_t* shape, int channels_last, int64_t element) {
  return {shape_of(shape), channels_last != 0, static_cast<Pool2dElement>(element)};
}

}  // namespace

FC_ENTRY int fastconv_max_pool2d_forward(const int64_t* shape, int channels_last, int64_t element,
                                         const void* input, void* output, void* offsets) {
  return launch_max_pool2d_forward({call_of(shape, channels_last, element), input, output, offsets},
                                   nullptr);
}

FC_ENTRY int fastconv_max_pool2d_backward(const int64_t* shape, int channels_last, int64_t element,
                                          const void* grad_output, const void* offsets,
                                          void* grad_input) {
  return launch_max_pool2d_backward(
      {call_of(shape, channels_last, element), grad_output, offsets, grad_input}, nullptr);
}

FC_ENTRY int fastconv_max_pool2d_gather(const int64_t* shape, int channels_last, int64_t element,
                                        const void* source, const void* offsets, void* output) {
  return launch_max_pool2d_gather({call_of(shape, channels_last, element), source, offsets, output},
                                  nullptr);
}

FC_ENTRY int fastconv_max_pool2d_indices(const int64_t* shape, int channels_last,
                                         const void* offsets, int64_t* indices) {
  return launch_max_pool2d_indices({shape_of(shape), channels_last != 0, offsets, indices},
                                   nullptr);
}

FC_ENTRY int fastconv_avg_pool2d_forward(const int64_t* shape, int channels_last, int64_t element,
                                         int count_include_pad, int64_t divisor_override,
                                         const void* input, void* output) {
  return launch_avg_pool2d_forward({call_of(shape, channels_last, element),
                                    {count_include_pad != 0, divisor_override},
                                    input,
                                    output},
                                   nullptr);
}

FC_ENTRY int fastconv_avg_pool2d_backward(const int64_t* shape, int channels_last, int64_t element,
                                          int count_include_pad, int64_t divisor_override,
                                          const void* grad_output, void* grad_input) {
  return launch_avg_pool2d_backward({call_of(shape, channels_last, element),
                                     {count_include_pad != 0, divisor_override},
                                     grad_output,
                                     grad_input},
                                    nullptr);
}
