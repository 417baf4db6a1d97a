// SPDX-License-Identifier: MIT
// From an element type by name to one that a kernel is compiled for.
#pragma once

#include "cuda/common/types.cuh"
#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

// body(T()) for float32, bfloat16 and float16: what has sums in float32.
template <class Body>
cudaError_t with_conv2d_float(Conv2dElement element, const Body& body) {
  switch (element) {
    case Conv2dElement::kFloat32:
      return body(float());
    case Conv2dElement::kBFloat16:
      return body(__nv_bfloat16());
    case Conv2dElement::kFloat16:
      return body(__half());
    case Conv2dElement::kFloat64:
      break;
  }
  return cudaErrorInvalidValue;
}

// For all types.
template <class Body>
cudaError_t with_conv2d_element(Conv2dElement element, const Body& body) {
  return element == Conv2dElement::kFloat64 ? body(double()) : with_conv2d_float(element, body);
}

}  // namespace fastconv::cuda
