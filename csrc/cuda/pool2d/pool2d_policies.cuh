// SPDX-License-Identifier: MIT
// What a window does with its taps: the maximum with its tap number, or the sum and its divisor.
// Count neighbouring values of one row or of the channels go together.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"
#include "cuda/pool2d/pool2d_window.cuh"

namespace fastconv::cuda {

// Writes or reads Count offsets from element `at` on, at most 16 bytes at a time.
template <int Count>
__device__ inline void store_offsets(const PoolOffsets& offsets, int64_t at,
                                     const int32_t (&taps)[Count]) {
  if (offsets.bytes) {
    Vec<uint8_t, Count> packed;
#pragma unroll
    for (int v = 0; v < Count; ++v) packed[v] = static_cast<uint8_t>(taps[v]);
    store_vector(static_cast<uint8_t*>(offsets.data) + at, packed);
  } else {
    constexpr int kPart = Count < 4 ? Count : 4;
#pragma unroll
    for (int first = 0; first < Count; first += kPart) {
      Vec<int32_t, kPart> part;
#pragma unroll
      for (int v = 0; v < kPart; ++v) part[v] = taps[first + v];
      store_vector(static_cast<int32_t*>(offsets.data) + at + first, part);
    }
  }
}

template <int Count>
__device__ inline void load_offsets(const PoolOffsets& offsets, int64_t at,
                                    int32_t (&taps)[Count]) {
  if (offsets.bytes) {
    const auto packed =
        load_vector_streaming<Count>(static_cast<const uint8_t*>(offsets.data) + at);
#pragma unroll
    for (int v = 0; v < Count; ++v) taps[v] = packed[v];
  } else {
    constexpr int kPart = Count < 4 ? Count : 4;
#pragma unroll
    for (int first = 0; first < Count; first += kPart) {
      const auto part =
          load_vector_streaming<kPart>(static_cast<const int32_t*>(offsets.data) + at + first);
#pragma unroll
      for (int v = 0; v < kPart; ++v) taps[first + v] = part[v];
    }
  }
}

// --- Forward ------------------------------------------------------------------------------------

template <typename T_>
struct MaxWindow {
  using T = T_;
  PoolOffsets offsets;

  template <int Count>
  struct State {
    Accumulate<T> best[Count];
    int32_t tap[Count];
  };

  template <int Count>
  __device__ void start(State<Count>& state, int64_t first_tap) const {
#pragma unroll
    for (int v = 0; v < Count; ++v) {
      state.best[v] = -INFINITY;
      state.tap[v] = static_cast<int32_t>(first_tap);
    }
  }

  template <int Count>
  __device__ void add(State<Count>& state, int v, T value, int64_t tap) const {
    const Accumulate<T> x = to_accumulate(value);
    if (x > state.best[v] || x != x) {
      state.best[v] = x;
      state.tap[v] = static_cast<int32_t>(tap);
    }
  }

  template <int Count, typename Index>
  __device__ void finish(const State<Count>& state, T* output, int64_t at,
                         const PoolShape<Index>& /*shape*/, Index /*row*/, Index /*column*/) const {
    Vec<T, Count> result;
#pragma unroll
    for (int v = 0; v < Count; ++v) result[v] = from_accumulate<T>(state.best[v]);
    store_vector(output + at, result);
    if (offsets.data != nullptr) store_offsets(offsets, at, state.tap);
  }
};

// The divisor of the window that starts at (row, column).
template <typename Index>
__device__ inline int64_t divisor_of(const AvgDivisor& divisor, const PoolShape<Index>& shape,
                                     Index row, Index column) {
  if (divisor.divisor_override != 0) return divisor.divisor_override;
  return static_cast<int64_t>(shape.rows.counted(row, divisor.count_include_pad)) *
         shape.columns.counted(column, divisor.count_include_pad);
}

template <typename T_>
struct AvgWindow {
  using T = T_;
  AvgDivisor divisor;

  template <int Count>
  struct State {
    Accumulate<T> sum[Count];
  };

  template <int Count>
  __device__ void start(State<Count>& state, int64_t /*first_tap*/) const {
#pragma unroll
    for (int v = 0; v < Count; ++v) state.sum[v] = 0;
  }

  template <int Count>
  __device__ void add(State<Count>& state, int v, T value, int64_t /*tap*/) const {
    state.sum[v] += to_accumulate(value);
  }

  template <int Count, typename Index>
  __device__ void finish(const State<Count>& state, T* output, int64_t at,
                         const PoolShape<Index>& shape, Index row, Index column) const {
    const auto by = static_cast<Accumulate<T>>(divisor_of(divisor, shape, row, column));
    Vec<T, Count> result;
#pragma unroll
    for (int v = 0; v < Count; ++v) result[v] = from_accumulate<T>(state.sum[v] / by);
    store_vector(output + at, result);
  }
};

// --- Backward -----------------------------------------------------------------------------------

// A window hands its gradient to the tap that won ...
template <typename T_>
struct MaxShare {
  using T = T_;
  PoolOffsets offsets;

  // What the window whose gradients start at element `at` gives to each of its taps.
  template <int Count>
  struct Window {
    Vec<T, Count> grads;
    int32_t taps[Count];
    __device__ Accumulate<T> share(int v, int64_t tap) const {
      return taps[v] == static_cast<int32_t>(tap) ? to_accumulate(grads[v]) : Accumulate<T>(0);
    }
  };

  template <int Count, typename Index>
  __device__ Window<Count> window(const T* grad_output, int64_t at,
                                  const PoolShape<Index>& /*shape*/, Index /*row*/,
                                  Index /*column*/) const {
    Window<Count> result;
    result.grads = load_vector_streaming<Count>(grad_output + at);
    load_offsets(offsets, at, result.taps);
    return result;
  }
};

// ... or an equal share to each.
template <typename T_>
struct AvgShare {
  using T = T_;
  AvgDivisor divisor;

  template <int Count>
  struct Window {
    Accumulate<T> shares[Count];
    __device__ Accumulate<T> share(int v, int64_t /*tap*/) const { return shares[v]; }
  };

  template <int Count, typename Index>
  __device__ Window<Count> window(const T* grad_output, int64_t at, const PoolShape<Index>& shape,
                                  Index row, Index column) const {
    const auto by = static_cast<Accumulate<T>>(divisor_of(divisor, shape, row, column));
    const Vec<T, Count> grads = load_vector_streaming<Count>(grad_output + at);
    Window<Count> result;
#pragma unroll
    for (int v = 0; v < Count; ++v) result.shares[v] = to_accumulate(grads[v]) / by;
    return result;
  }
};

}  // namespace fastconv::cuda
