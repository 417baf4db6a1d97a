// SPDX-License-Identifier: MIT
// What a kernel calls on the emulated device: its indices, barriers, warp collectives, atomics and
// the instructions of cuda/common/ptx.cuh. Everything that touches the kernel's own memory is
// inline here, so that sanitizers see it as the kernel's access; everything else is the engine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "tests/cuda_shim/device_types.h"

namespace fastconv::cuda_shim {

using Where = std::source_location;

// The CUDA thread that runs now.
struct ThreadView {
  uint3 thread_index;
  uint3 block_index;
  dim3 block_size;
  dim3 grid_size;
  void* shared;
};
extern ThreadView* running_thread;

inline void* dynamic_shared() {
  return running_thread->shared;
}

// --- The engine's side --------------------------------------------------------------------------

// Ends the launch with cudaErrorLaunchFailure; last_error() then tells thread, line and text.
[[noreturn, gnu::format(printf, 2, 3)]] void fail(Where where, const char* format, ...);

void block_barrier(Where where);
// A point where a hostile schedule may run another thread.
void maybe_preempt();
void check_aligned(const void* pointer, size_t bytes, Where where);
// Ends the launch unless [pointer, pointer + bytes) is shared memory of the block.
void check_shared(const void* pointer, size_t bytes, Where where);

enum class Collective : uint8_t {
  kSync,
  kShuffle,
  kBallot,
  kMatrix,
  kMatrixTransposed,
  kMmaBf16,
  kMmaHalf,
  kMmaTf32
};
inline constexpr int kWordsIn = 10;
inline constexpr int kWordsOut = 4;

// Waits until every lane of `mask` has called with the same kind, mask and line, and returns the
// words that are this lane's share of the result, valid until its next collective.
const uint32_t* collective(Collective kind, uint32_t mask, const uint32_t* words, int count,
                           int source_lane, Where where);

// Order between threads that only ThreadSanitizer needs to be told of.
void before_atomic(const void* address);
void after_atomic(const void* address);
void thread_fence();

struct AsyncCopy {
  void* shared;
  const void* global;
  int valid_bytes;
};
// True when copies run as they are issued, false when they run as late as possible.
bool copies_run_at_issue();
void start_copy(const AsyncCopy& copy, Where where);
void commit_copies();
// Takes the next copy that must be finished before at most `pending` groups are left.
bool take_copy(int pending, AsyncCopy& copy);

// --- Instructions of ptx.cuh --------------------------------------------------------------------

inline void run_copy(const AsyncCopy& copy) {
  auto* to = static_cast<unsigned char*>(copy.shared);
  const auto* from = static_cast<const unsigned char*>(copy.global);
  for (int i = 0; i < 16; ++i) to[i] = i < copy.valid_bytes ? from[i] : 0;
}

inline void cp_async_16(void* shared, const void* global, int valid_bytes, Where where) {
  maybe_preempt();
  const AsyncCopy copy{shared, global, valid_bytes};
  start_copy(copy, where);
  if (copies_run_at_issue()) return run_copy(copy);
  // From now on the destination is nobody's: whatever is read there before the wait is NaN.
  for (int i = 0; i < 16; ++i) static_cast<unsigned char*>(shared)[i] = 0xff;
}
inline void cp_async_commit(Where) {
  commit_copies();
}
inline void cp_async_wait(int pending, Where) {
  AsyncCopy copy;
  while (take_copy(pending, copy))
    if (!copies_run_at_issue()) run_copy(copy);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed, Where where) {
  check_aligned(row, 16, where);
  check_shared(row, 16, where);
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = static_cast<const uint32_t*>(row)[i];
  const auto kind = transposed ? Collective::kMatrixTransposed : Collective::kMatrix;
  const uint32_t* result = collective(kind, 0xffffffffu, words, 4, 0, where);
  for (int i = 0; i < 4; ++i) r[i] = result[i];
}

inline void mma(Collective kind, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                Where where) {
  uint32_t words[kWordsIn];
  for (int i = 0; i < 4; ++i) words[i] = a[i];
  for (int i = 0; i < 2; ++i) words[4 + i] = b[i];
  for (int i = 0; i < 4; ++i) words[6 + i] = __builtin_bit_cast(uint32_t, d[i]);
  const uint32_t* result = collective(kind, 0xffffffffu, words, kWordsIn, 0, where);
  for (int i = 0; i < 4; ++i) d[i] = __builtin_bit_cast(float, result[i]);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Where where) {
  mma(Collective::kMmaBf16, d, a, b, where);
}
inline void mma_m16n8k16_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Where where) {
  mma(Collective::kMmaHalf, d, a, b, where);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Where where) {
  mma(Collective::kMmaTf32, d, a, b, where);
}

inline uint32_t to_tf32(float x) {
  if (x != x) return 0x7fffffffu;  // the GPU's canonical NaN
  return (__builtin_bit_cast(uint32_t, x) + 0x1000u) & ~0x1fffu;
}

// Passes a value of 1, 2, 4 or 8 bytes from lane `source` of the caller's mask.
template <typename T>
inline T shuffle(uint32_t mask, T value, int source, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint32_t words[2] = {};
  std::memcpy(words, &value, sizeof(T));
  const uint32_t* result = collective(Collective::kShuffle, mask, words, 2, source, where);
  std::memcpy(&value, result, sizeof(T));
  return value;
}

inline int lane_of_thread() {
  const ThreadView& t = *running_thread;
  return static_cast<int>(
      (t.thread_index.x + t.block_size.x * (t.thread_index.y + t.block_size.y * t.thread_index.z)) %
      32);
}

// Old value; `next` computes the new one from it.
template <typename T, class Next>
inline T atomic_update(T* address, const Next& next) {
  maybe_preempt();
  before_atomic(address);
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, next(old), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  after_atomic(address);
  maybe_preempt();
  return old;
}

}  // namespace fastconv::cuda_shim

// --- CUDA's names -------------------------------------------------------------------------------

#define threadIdx (::fastconv::cuda_shim::running_thread->thread_index)
#define blockIdx (::fastconv::cuda_shim::running_thread->block_index)
#define blockDim (::fastconv::cuda_shim::running_thread->block_size)
#define gridDim (::fastconv::cuda_shim::running_thread->grid_size)
inline constexpr int warpSize = 32;

#define FASTCONV_SHIM_HERE std::source_location where = std::source_location::current()

inline void __syncthreads(FASTCONV_SHIM_HERE) {
  ::fastconv::cuda_shim::block_barrier(where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTCONV_SHIM_HERE) {
  ::fastconv::cuda_shim::collective(::fastconv::cuda_shim::Collective::kSync, mask, nullptr, 0, 0,
                                    where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, FASTCONV_SHIM_HERE) {
  const uint32_t word = predicate != 0;
  return *::fastconv::cuda_shim::collective(::fastconv::cuda_shim::Collective::kBallot, mask, &word,
                                            1, 0, where);
}
inline int __any_sync(unsigned mask, int predicate, FASTCONV_SHIM_HERE) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTCONV_SHIM_HERE) {
  return __ballot_sync(mask, predicate, where) == mask;
}

// A lane whose source falls outside its segment of `width` lanes gets its own value.
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, FASTCONV_SHIM_HERE) {
  const int segment = ::fastconv::cuda_shim::lane_of_thread() & ~(width - 1);
  return ::fastconv::cuda_shim::shuffle(mask, value, segment + (source & (width - 1)), where);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, FASTCONV_SHIM_HERE) {
  const int lane = ::fastconv::cuda_shim::lane_of_thread();
  const int source = lane ^ bits;
  // A later segment cannot be read; an earlier one can.
  return ::fastconv::cuda_shim::shuffle(
      mask, value, source >= (lane & ~(width - 1)) + width ? lane : source, where);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32, FASTCONV_SHIM_HERE) {
  const int lane = ::fastconv::cuda_shim::lane_of_thread();
  const bool inside = (lane & (width - 1)) + delta < width;
  return ::fastconv::cuda_shim::shuffle(mask, value, inside ? lane + delta : lane, where);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32, FASTCONV_SHIM_HERE) {
  const int lane = ::fastconv::cuda_shim::lane_of_thread();
  const bool inside = (lane & (width - 1)) >= delta;
  return ::fastconv::cuda_shim::shuffle(mask, value, inside ? lane - delta : lane, where);
}

inline void __threadfence() {
  ::fastconv::cuda_shim::thread_fence();
}

// Integers only: there are no float atomics in this project.
template <typename T>
inline T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T> && sizeof(T) >= 4);
  return ::fastconv::cuda_shim::atomic_update(address,
                                              [=](T old) { return static_cast<T>(old + value); });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return ::fastconv::cuda_shim::atomic_update(
      address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; });
}
