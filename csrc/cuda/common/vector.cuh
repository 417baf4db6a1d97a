// SPDX-License-Identifier: MIT
// Vector access to global and shared memory. Every access wider than one element goes through this
// file: one instruction on the GPU, and a checked alignment in the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/common/seam.h"

namespace fastconv::cuda {

template <typename T, int Count>
struct alignas(sizeof(T) * Count) Vec {
  static constexpr int kCount = Count;
  T values[Count];
  __host__ __device__ T& operator[](int i) { return values[i]; }
  __host__ __device__ const T& operator[](int i) const { return values[i]; }
};

template <typename T>
inline constexpr int kPer128 = static_cast<int>(16 / sizeof(T));

template <typename T>
using Vec128 = Vec<T, kPer128<T>>;

__host__ __device__ inline bool aligned_to(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}
__host__ __device__ inline bool aligned16(const void* pointer) {
  return aligned_to(pointer, 16);
}

// The register type of one access of so many bytes.
template <int Bytes>
struct WordOf;
template <>
struct WordOf<1> {
  using Type = uint8_t;
};
template <>
struct WordOf<2> {
  using Type = uint16_t;
};
template <>
struct WordOf<4> {
  using Type = uint32_t;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

// Count neighbouring values in one access of at most 16 bytes. Precondition: p is aligned to the
// size of the vector.
template <int Count, typename T>
__device__ inline Vec<T, Count> load_vector(const T* p FC_WHERE) {
  using Word = typename WordOf<sizeof(T) * Count>::Type;
  FC_CHECK_ALIGNED(p, sizeof(Word));
  return __builtin_bit_cast(Vec<T, Count>, *reinterpret_cast<const Word*>(p));
}

// As load_vector, through the read-only cache (ld.global.nc): for global memory that no thread
// writes while the kernel runs.
template <int Count, typename T>
__device__ inline Vec<T, Count> load_vector_streaming(const T* p FC_WHERE) {
  using Word = typename WordOf<sizeof(T) * Count>::Type;
  FC_CHECK_ALIGNED(p, sizeof(Word));
  return __builtin_bit_cast(Vec<T, Count>, __ldg(reinterpret_cast<const Word*>(p)));
}

template <int Count, typename T>
__device__ inline void store_vector(T* p, const Vec<T, Count>& vector FC_WHERE) {
  using Word = typename WordOf<sizeof(T) * Count>::Type;
  FC_CHECK_ALIGNED(p, sizeof(Word));
  *reinterpret_cast<Word*>(p) = __builtin_bit_cast(Word, vector);
}

// 16 bytes at once.
template <typename T>
__device__ inline Vec128<T> load128(const T* p FC_WHERE) {
  return load_vector<kPer128<T>>(p FC_PASS_WHERE);
}
template <typename T>
__device__ inline Vec128<T> load_streaming(const T* p FC_WHERE) {
  return load_vector_streaming<kPer128<T>>(p FC_PASS_WHERE);
}
template <typename T>
__device__ inline void store128(T* p, const Vec128<T>& vector FC_WHERE) {
  store_vector<kPer128<T>>(p, vector FC_PASS_WHERE);
}

}  // namespace fastconv::cuda
