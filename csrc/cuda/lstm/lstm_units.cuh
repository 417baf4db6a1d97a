// SPDX-License-Identifier: MIT
// What a thread does with the four gates of one unit, and how it reads and writes them.
#pragma once

#include <cstdint>

#include "common/lstm_math.h"
#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"

namespace fastconv::cuda {

// Four neighbouring values in accesses of at most 16 bytes. Precondition: p is aligned to the
// smaller one of 16 bytes and four values.
template <class T>
__device__ inline LstmGates<Accumulate<T>> load_gates(const T* p) {
  if constexpr (sizeof(T) == 8) {
    const Vec<T, 2> a = load_vector<2>(p), b = load_vector<2>(p + 2);
    return {a[0], a[1], b[0], b[1]};
  } else {
    const Vec<T, 4> v = load_vector<4>(p);
    return {to_accumulate(v[0]), to_accumulate(v[1]), to_accumulate(v[2]), to_accumulate(v[3])};
  }
}

template <class T>
__device__ inline void store_gates(T* p, const LstmGates<Accumulate<T>>& gates) {
  const Vec<T, 4> v{{from_accumulate<T>(gates.i), from_accumulate<T>(gates.f),
                     from_accumulate<T>(gates.g), from_accumulate<T>(gates.o)}};
  if constexpr (sizeof(T) == 8) {
    store_vector<2>(p, {{v[0], v[1]}});
    store_vector<2>(p + 2, {{v[2], v[3]}});
  } else {
    store_vector<4>(p, v);
  }
}

template <class S>
__device__ inline LstmGates<S> operator+(const LstmGates<S>& a, const LstmGates<S>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

// An element of an array that may be absent, which means zeros.
template <class T>
__device__ inline Accumulate<T> load_or_zero(const T* p, int64_t at) {
  return p == nullptr ? Accumulate<T>(0) : to_accumulate(p[at]);
}

}  // namespace fastconv::cuda
