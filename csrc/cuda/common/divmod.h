// SPDX-License-Identifier: MIT
// Division by a number known at launch: a high multiply, an add and a shift (Granlund and
// Montgomery, "Division by Invariant Integers using Multiplication", 1994). With l = ceil(log2 d)
// and m = floor(2^N * (2^l - d) / d) + 1 the quotient of n is (high(n * m) + n) >> l, exact for
// every n below 2^(N-1).
//
// FastDivmod divides numbers below 2^31 (N = 32), FastDivmod64 numbers below 2^63 (N = 64, about
// four times the instructions). fits_int32 tells a launcher which one a tensor needs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastconv::cuda {

// True when every element offset up to and including `count` fits 32-bit arithmetic.
__host__ __device__ inline bool fits_int32(int64_t count) {
  return count <= 0x7fffffff;
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

// ceil(log2(divisor)) for 1 <= divisor < 2^63.
__host__ __device__ inline uint32_t ceil_log2(uint64_t divisor) {
  uint32_t bits = 0;
  while ((uint64_t{1} << bits) < divisor) ++bits;
  return bits;
}

class FastDivmod {
 public:
  using Index = int32_t;
  FastDivmod() = default;
  // Precondition: 1 <= divisor < 2^31.
  __host__ __device__ explicit FastDivmod(int64_t divisor)
      : divisor_(static_cast<uint32_t>(divisor)), shift_(ceil_log2(divisor_)) {
    const uint64_t numerator = ((uint64_t{1} << shift_) - divisor_) << 32;
    multiplier_ = static_cast<uint32_t>(numerator / divisor_ + 1);
  }

  // Precondition: 0 <= n < 2^31.
  __host__ __device__ int32_t divide(int32_t n) const {
    const uint32_t u = static_cast<uint32_t>(n);
#ifdef __CUDA_ARCH__
    const uint32_t high = __umulhi(u, multiplier_);
#else
    const uint32_t high = static_cast<uint32_t>(uint64_t{u} * multiplier_ >> 32);
#endif
    return static_cast<int32_t>((high + u) >> shift_);
  }

  // Returns the quotient, puts n - quotient * divisor in `remainder`.
  __host__ __device__ int32_t divmod(int32_t n, int32_t& remainder) const {
    const int32_t quotient = divide(n);
    remainder = n - quotient * divisor();
    return quotient;
  }

  __host__ __device__ int32_t divisor() const { return static_cast<int32_t>(divisor_); }

 private:
  uint32_t divisor_ = 1;
  uint32_t multiplier_ = 1;
  uint32_t shift_ = 0;
};

class FastDivmod64 {
 public:
  using Index = int64_t;
  FastDivmod64() = default;
  // Precondition: 1 <= divisor < 2^63.
  __host__ explicit FastDivmod64(int64_t divisor)
      : divisor_(static_cast<uint64_t>(divisor)), shift_(ceil_log2(divisor_)) {
    __extension__ using Wide = unsigned __int128;
    const Wide numerator = (((Wide{1} << shift_) - divisor_) << 64);
    multiplier_ = static_cast<uint64_t>(numerator / divisor_ + 1);
  }

  // Precondition: 0 <= n < 2^63.
  __host__ __device__ int64_t divide(int64_t n) const {
    const uint64_t u = static_cast<uint64_t>(n);
#ifdef __CUDA_ARCH__
    const uint64_t high = __umul64hi(u, multiplier_);
#else
    __extension__ using Wide = unsigned __int128;
    const uint64_t high = static_cast<uint64_t>(Wide{u} * multiplier_ >> 64);
#endif
    return static_cast<int64_t>((high + u) >> shift_);
  }

  __host__ __device__ int64_t divmod(int64_t n, int64_t& remainder) const {
    const int64_t quotient = divide(n);
    remainder = n - quotient * divisor();
    return quotient;
  }

  __host__ __device__ int64_t divisor() const { return static_cast<int64_t>(divisor_); }

 private:
  uint64_t divisor_ = 1;
  uint64_t multiplier_ = 1;
  uint32_t shift_ = 0;
};

}  // namespace fastconv::cuda
