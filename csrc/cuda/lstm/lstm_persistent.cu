// SPDX-License-Identifier: MIT
// The recurrence of up to 128 units as one kernel on the ordinary units, float32. A block owns four
// sequences and goes through all their steps by itself: W_hh stays in its registers (half of it in
// shared memory at 128 units), h passes through two buffers of shared memory, and one barrier per
// step is all the waiting there is.
//
//   forward   z[u][gate] = pre + sum_k W_hh[gate][u][k] h[k]        4 threads per unit u, every
//             fourth piece of four k each, for all four gates and all four sequences
//   backward  grad_h[k] = sum_u sum_gate W_hh[gate][u][k] dz[u][gate]   16 threads per four k,
//             every 16th unit u each
//
// Either way a thread multiplies 4 results x 4 sequences by pieces of four terms, and the partial
// sums meet in shuffles that leave thread 4 u + r with unit u of sequence r, in an order that does
// not depend on anything.
#include "cuda/lstm/lstm_plan.cuh"
#include "cuda/lstm/lstm_units.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kRows = kPersistentRows<float>;
constexpr unsigned kAll = 0xffffffffu;

// Four results by `Pieces` pieces of four terms: the first ones in registers, the others in shared
// memory, [piece][result][thread].
template <int Units>
class Weights {
 public:
  static constexpr int kThreads = 4 * Units;
  static constexpr int kPieces = Units / 16;
  static constexpr int kShared = Units == 128 ? kPieces / 2 : 0;
  static constexpr int kHeld = kPieces - kShared;
  static constexpr int kSharedFloats = kShared * 4 * 4 * kThreads;

  // weight(piece, result, term) for this thread.
  template <class Weight>
  __device__ Weights(float* shared, Weight&& weight) : shared_(shared) {
#pragma unroll
    for (int p = 0; p < kHeld; ++p)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < 4; ++j) held_[p][r][j] = weight(p, r, j);
#pragma unroll 1
    for (int p = 0; p < kShared; ++p)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        Vec128<float> v;
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = weight(kHeld + p, r, j);
        store128(at(p, r), v);
      }
  }

  // sums[result][row] of the pieces that terms(piece, row) reads.
  template <class Terms>
  __device__ void multiply(float (&sums)[4][kRows], Terms&& terms) const {
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int row = 0; row < kRows; ++row) sums[r][row] = 0.0f;
#pragma unroll
    for (int p = 0; p < kHeld; ++p)
#pragma unroll
      for (int row = 0; row < kRows; ++row) add(sums, held_[p], terms(p, row), row);
    // Not unrolled: the loads that the compiler would move ahead have no registers to go to.
#pragma unroll 1
    for (int p = 0; p < kShared; ++p) {
      float w[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const Vec128<float> v = load128(at(p, r));
#pragma unroll
        for (int j = 0; j < 4; ++j) w[r][j] = v[j];
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) add(sums, w, terms(kHeld + p, row), row);
    }
  }

 private:
  __device__ static void add(float (&sums)[4][kRows], const float (&w)[4][4],
                             const Vec128<float>& v, int row) {
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[r][row] = fmaf(w[r][j], v[j], sums[r][row]);
  }

  __device__ float* at(int piece, int result) const {
    return shared_ + ((piece * 4 + result) * kThreads + static_cast<int>(threadIdx.x)) * 4;
  }

  float* shared_;
  float held_[kHeld][4][4];
};

// Adds the sums of the four threads that differ in the two lowest bits of the lane; afterwards
// thread 4 k + r holds row r.
__device__ inline void add_over_rows(const float (&sums)[4][kRows], float (&mine)[4]) {
  const bool high = threadIdx.x & 2, odd = threadIdx.x & 1;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    float half[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float keep = high ? sums[r][2 + j] : sums[r][j];
      const float give = high ? sums[r][j] : sums[r][2 + j];
      half[j] = keep + __shfl_xor_sync(kAll, give, 2);
    }
    const float keep = odd ? half[1] : half[0], give = odd ? half[0] : half[1];
    mine[r] = keep + __shfl_xor_sync(kAll, give, 1);
  }
}

// The same over results and the next two bits of the lane: thread 16 k + 4 r + . holds result r.
__device__ inline float add_over_results(const float (&sums)[4]) {
  const bool high = threadIdx.x & 8, odd = threadIdx.x & 4;
  float half[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float keep = high ? sums[2 + j] : sums[j];
    const float give = high ? sums[j] : sums[2 + j];
    half[j] = keep + __shfl_xor_sync(kAll, give, 8);
  }
  const float keep = odd ? half[1] : half[0], give = odd ? half[0] : half[1];
  return keep + __shfl_xor_sync(kAll, give, 4);
}

template <int Units>
__global__ void __launch_bounds__(4 * Units, 1)
    lstm_persistent_forward_kernel(PersistentForward<float> call) {
  FC_DYNAMIC_SHARED(float, shared);
  float* h_shared = shared + Weights<Units>::kSharedFloats;  // [2][kRows][Units]
  const int tid = static_cast<int>(threadIdx.x);
  const int unit = tid / 4, slice = tid % 4;
  const int64_t hidden = call.hidden, row = blockIdx.x * int64_t{kRows} + slice;
  const bool exists = unit < hidden && row < call.time.batch;

  const Weights<Units> weights(shared, [&](int piece, int gate, int j) {
    const int64_t k = piece * 16 + slice * 4 + j;
    return unit < hidden && k < hidden ? call.weight_hh[(gate * hidden + unit) * hidden + k] : 0.0f;
  });
  float h = exists ? load_or_zero(call.h_0, row * hidden + unit) : 0.0f;
  float c = exists ? load_or_zero(call.c_0, row * hidden + unit) : 0.0f;
  h_shared[slice * Units + unit] = h;

  int buffer = 0;
  for (int n = 0; n < call.time.steps; ++n) {
    const int step = call.time.nth_step(n);
    const bool active = exists && row < call.time.active(step);
    const int64_t at = (call.time.first_row(step) + row) * hidden + unit;
    LstmGates<float> gates{};
    if (active) gates = load_gates(call.pre + at * 4);
    __syncthreads();
    float sums[4][kRows], mine[4];
    const float* before = h_shared + buffer * kRows * Units;
    weights.multiply(sums, [&](int piece, int r) {
      return load128(before + r * Units + piece * 16 + slice * 4);
    });
    add_over_rows(sums, mine);
    if (active) {
      gates = lstm_activate(gates + LstmGates<float>{mine[0], mine[1], mine[2], mine[3]});
      c = lstm_cell_state(gates, c);
      h = lstm_cell_output(gates, c);
      call.output[at] = h;
      if (call.gates != nullptr) {
        store_gates(call.gates + at * 4, gates);
        call.cells[at] = c;
      }
    }
    buffer ^= 1;
    h_shared[(buffer * kRows + slice) * Units + unit] = h;
  }
  if (!exists) return;
  call.h_n[row * hidden + unit] = h;
  call.c_n[row * hidden + unit] = c;
}

template <int Units>
__global__ void __launch_bounds__(4 * Units, 1)
    lstm_persistent_backward_kernel(PersistentBackward<float> call) {
  FC_DYNAMIC_SHARED(float, shared);
  float* dz_shared = shared + Weights<Units>::kSharedFloats;  // [2][kRows][Units][4]
  const int tid = static_cast<int>(threadIdx.x);
  const int unit = tid / 4, slice = tid % 16;
  const int64_t hidden = call.hidden, row = blockIdx.x * int64_t{kRows} + tid % 4;
  const bool exists = unit < hidden && row < call.time.batch;

  const Weights<Units> weights(shared, [&](int piece, int result, int gate) {
    const int64_t k = tid / 16 * 4 + result, u = piece * 16 + slice;
    return k < hidden && u < hidden ? call.weight_hh[(gate * hidden + u) * hidden + k] : 0.0f;
  });
  float grad_h = exists ? load_or_zero(call.grad_h_n, row * hidden + unit) : 0.0f;
  float grad_c = exists ? load_or_zero(call.grad_c_n, row * hidden + unit) : 0.0f;

  int buffer = 0;
  for (int n = call.time.steps - 1; n >= 0; --n) {
    const int step = call.time.nth_step(n);
    const bool active = exists && row < call.time.active(step);
    const int64_t at = (call.time.first_row(step) + row) * hidden + unit;
    LstmGates<float> dz{};
    if (active) {
      float before = 0.0f;
      const int step_before = n > 0 ? call.time.nth_step(n - 1) : -1;
      if (n > 0 && row < call.time.active(step_before))
        before = call.cells[(call.time.first_row(step_before) + row) * hidden + unit];
      else
        before = load_or_zero(call.c_0, row * hidden + unit);
      const LstmUnitGradients<float> g =
          lstm_unit_gradients(load_gates(call.gates + at * 4), call.cells[at], before,
                              grad_h + load_or_zero(call.grad_output, at), grad_c);
      dz = g.gates;
      grad_c = g.cell_before;
      store_gates(call.grad_gates + at * 4, dz);
    }
    float* dz_step = dz_shared + buffer * kRows * Units * 4;
    store_gates(dz_step + (tid % 4 * Units + unit) * 4, dz);
    __syncthreads();
    float sums[4][kRows], mine[4];
    weights.multiply(sums, [&](int piece, int r) {
      return load128(dz_step + (r * Units + piece * 16 + slice) * 4);
    });
    add_over_rows(sums, mine);
    const float sum = add_over_results(mine);
    if (active) grad_h = sum;
    buffer ^= 1;
  }
  if (!exists) return;
  call.grad_h_0[row * hidden + unit] = grad_h;
  call.grad_c_0[row * hidden + unit] = grad_c;
}

unsigned blocks_for(int64_t batch) {
  return static_cast<unsigned>((batch + kRows - 1) / kRows);
}

template <int Units>
cudaError_t forward_with(const PersistentForward<float>& call, cudaStream_t stream) {
  return FC_LAUNCH((lstm_persistent_forward_kernel<Units>), blocks_for(call.time.batch), 4 * Units,
                   (Weights<Units>::kSharedFloats + 2 * kRows * Units) * sizeof(float), stream,
                   call);
}

template <int Units>
cudaError_t backward_with(const PersistentBackward<float>& call, cudaStream_t stream) {
  return FC_LAUNCH((lstm_persistent_backward_kernel<Units>), blocks_for(call.time.batch), 4 * Units,
                   (Weights<Units>::kSharedFloats + 2 * kRows * Units * 4) * sizeof(float), stream,
                   call);
}

}  // namespace

template <>
cudaError_t launch_lstm_persistent_forward(const PersistentForward<float>& call,
                                           cudaStream_t stream) {
  switch (persistent_units(call.hidden)) {
    case 32:
      return forward_with<32>(call, stream);
    case 64:
      return forward_with<64>(call, stream);
    case 96:
      return forward_with<96>(call, stream);
    case 128:
      return forward_with<128>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <>
cudaError_t launch_lstm_persistent_backward(const PersistentBackward<float>& call,
                                            cudaStream_t stream) {
  switch (persistent_units(call.hidden)) {
    case 32:
      return backward_with<32>(call, stream);
    case 64:
      return backward_with<64>(call, stream);
    case 96:
      return backward_with<96>(call, stream);
    case 128:
      return backward_with<128>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastconv::cuda
