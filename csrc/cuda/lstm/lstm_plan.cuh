// SPDX-License-Identifier: MIT
// What the launchers of the LSTM have in common: where things lie in the workspace, which
// persistent kernel serves how many units, and the steps as kernels number them.
#pragma once

#include <cstdint>

#include "common/shapes.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/gemm/gemm.cuh"
#include "cuda/lstm/lstm.h"

namespace fastconv::cuda {

// Hands out pieces of the workspace one after another, aligned to 256 bytes; with nullptr it only
// counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    void* at = base_ == nullptr || count == 0 ? nullptr : base_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return static_cast<T*>(at);
  }

  int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

inline GemmMath gemm_math(bool allow_tf32) {
  return allow_tf32 ? GemmMath::kTf32 : GemmMath::kExact;
}

// Whether sums of T need no memory of another type.
template <class T>
inline constexpr bool kKeepsSums = sizeof(T) == sizeof(Accumulate<T>);

// Rows [first_row, rows) of [rows, width], for sequences without a single step; from may be
// nullptr.
template <class T>
cudaError_t launch_lstm_copy_states(const T* from, int64_t first_row, int64_t rows, int64_t width,
                                    T* to, cudaStream_t stream);

// The steps of a batch of sequences, for kernels that go through them: row_start is device memory.
// Steps are few enough for 32 bits, rows are not.
struct LstmTimeline {
  const int64_t* row_start;
  int steps;
  int64_t batch;
  bool reverse;

  __device__ int64_t first_row(int step) const {
    return row_start != nullptr ? row_start[step] : step * batch;
  }
  __device__ int64_t active(int step) const {
    return row_start != nullptr ? row_start[step + 1] - row_start[step] : batch;
  }
  __device__ int nth_step(int n) const { return reverse ? steps - 1 - n : n; }
};

inline LstmTimeline timeline(const LstmShape& s, const int64_t* row_start) {
  return {row_start, static_cast<int>(s.steps), s.batch, s.reverse};
}

// --- Persistent kernels: one block keeps four matrices of H x H weights --------------------------

inline constexpr int64_t kMostPersistentUnits = 128;
inline constexpr int64_t kMostPersistentSteps = 0x7ffffffe;

// Units rounded up to what kernels exist for.
inline int64_t persistent_units(int64_t hidden) {
  return (hidden + 31) / 32 * 32;
}

// Sequences per block: float32 has four threads to a unit, each finishes one sequence; tensor cores
// multiply sixteen at a time.
template <class T>
inline constexpr int kPersistentRows = sizeof(T) == 2 ? 16 : 4;

// Dynamic shared memory of a persistent kernel for `units` = persistent_units(H), the larger one of
// the forward and the backward kernel.
int64_t persistent_shared_bytes(int64_t units, int64_t element_bytes);

// The inside of the recurrence, all steps at once. Pre-activations, gates and gradients of gates
// are [N, H, 4]; what is nullptr in LstmForward and LstmBackward may be nullptr here.
template <class T>
struct PersistentForward {
  LstmTimeline time;
  int64_t hidden;
  const Accumulate<T>* pre;
  const T* h_0;
  const T* c_0;
  const T* weight_hh;
  T* output;
  T* h_n;
  T* c_n;
  T* gates;
  T* cells;
};

template <class T>
struct PersistentBackward {
  LstmTimeline time;
  int64_t hidden;
  const T* c_0;
  const T* weight_hh;
  const T* gates;
  const T* cells;
  const T* grad_output;
  const T* grad_h_n;
  const T* grad_c_n;
  T* grad_gates;
  T* grad_h_0;
  T* grad_c_0;
};

// float, __nv_bfloat16 and __half.
template <class T>
cudaError_t launch_lstm_persistent_forward(const PersistentForward<T>& call, cudaStream_t stream);
template <class T>
cudaError_t launch_lstm_persistent_backward(const PersistentBackward<T>& call, cudaStream_t stream);

}  // namespace fastconv::cuda
