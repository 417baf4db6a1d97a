// SPDX-License-Identifier: MIT
// Element types of the kernels - float, double, __nv_bfloat16, __half - and their conversions. Half
// types round to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastconv::cuda {

// What sums of T are kept in: double for double, float for the others.
template <typename T>
struct AccumulateOf {
  using Type = float;
};
template <>
struct AccumulateOf<double> {
  using Type = double;
};
template <typename T>
using Accumulate = typename AccumulateOf<T>::Type;

__host__ __device__ inline float to_float(float x) {
  return x;
}
__host__ __device__ inline float to_float(double x) {
  return static_cast<float>(x);
}
__host__ __device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__host__ __device__ inline float to_float(__half x) {
  return __half2float(x);
}

// The value of x in the accumulate type: exact for every T.
template <typename T>
__host__ __device__ inline Accumulate<T> to_accumulate(T x) {
  return to_float(x);
}
template <>
__host__ __device__ inline double to_accumulate<double>(double x) {
  return x;
}

template <typename T>
__host__ __device__ inline T from_float(float x) {
  return static_cast<T>(x);
}
template <>
__host__ __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__host__ __device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <typename T>
__host__ __device__ inline T from_accumulate(Accumulate<T> x) {
  return from_float<T>(x);
}
template <>
__host__ __device__ inline double from_accumulate<double>(double x) {
  return x;
}

// Two 16-bit values in one register, the first in the low half: the order of fragments in memory.
template <typename T>
__host__ __device__ inline uint32_t pack_pair(T low, T high) {
  static_assert(sizeof(T) == 2, "pack_pair packs 16-bit types");
  return static_cast<uint32_t>(__builtin_bit_cast(uint16_t, low)) |
         static_cast<uint32_t>(__builtin_bit_cast(uint16_t, high)) << 16;
}

}  // namespace fastconv::cuda
