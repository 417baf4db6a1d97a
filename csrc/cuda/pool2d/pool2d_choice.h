// SPDX-License-Identifier: MIT
// Host side shared by pool2d's launchers: element types, alignment, what fits 32-bit indices.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <initializer_list>

#include "cuda/pool2d/pool2d.h"

namespace fastconv::cuda {

// Calls body with a value of the element type and returns what it returns.
template <class Body>
cudaError_t dispatch_pool2d_element(Pool2dElement element, const Body& body) {
  switch (element) {
    case Pool2dElement::kFloat32:
      return body(float{});
    case Pool2dElement::kFloat64:
      return body(double{});
    case Pool2dElement::kBFloat16:
      return body(__nv_bfloat16{});
    case Pool2dElement::kFloat16:
      return body(__half{});
  }
  return cudaErrorInvalidValue;
}

inline bool all_aligned16(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers)
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  return true;
}

}  // namespace fastconv::cuda
