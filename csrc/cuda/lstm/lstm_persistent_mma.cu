// SPDX-License-Identifier: MIT
// The recurrence of up to 128 units as one kernel on the tensor cores, bfloat16 and float16. A
// block owns sixteen sequences; warp w owns the units [8 w, 8 w + 8) and keeps the weights of their
// products as B fragments in registers, 64 per thread at 128 units, for all steps.
//
//   forward   z[row][unit, gate] = pre + sum_k h[row][k] W_hh[gate][unit][k]     A = h, four
//             accumulators, one per gate: a thread has all gates of its units
//   backward  grad_h[row][k] = sum_(unit, gate) dz[row][unit, gate] W_hh[gate][unit][k]     A = dz
//
// In both a thread holds rows g and g + 8 and units 8 w + 2 t and 8 w + 2 t + 1 (lane = 4 g + t),
// so that states stay in registers as float32. A passes through two buffers of shared memory whose
// rows are an odd number of 16-byte pieces long: one barrier per step, no bank conflicts for
// ldmatrix.
#include "cuda/common/ptx.cuh"
#include "cuda/gemm/tile_mma.cuh"
#include "cuda/lstm/lstm_plan.cuh"
#include "cuda/lstm/lstm_units.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kRows = kPersistentRows<__half>;

// Where a thread stands: element e of an accumulator is row(e), unit(e) of the block's sequences.
// Small numbers, so that a step needs one 64-bit address and not one per element.
struct Place {
  int g, t, warp, hidden;
  __device__ explicit Place(int64_t units)
      : g(static_cast<int>(threadIdx.x) % 32 / 4),
        t(static_cast<int>(threadIdx.x) % 4),
        warp(static_cast<int>(threadIdx.x) / 32),
        hidden(static_cast<int>(units)) {}
  __device__ int row(int e) const { return g + e / 2 * 8; }
  __device__ int unit(int e) const { return warp * 8 + 2 * t + e % 2; }
  // Whether element e is one of the first `rows` sequences of the block.
  __device__ bool among(int e, int rows) const { return row(e) < rows && unit(e) < hidden; }
  // Its place in [sequences, hidden].
  __device__ int at(int e) const { return row(e) * hidden + unit(e); }
};

// How many of a block's sequences are among the first `count`.
__device__ inline int own_rows(int64_t count) {
  const int64_t left = count - blockIdx.x * int64_t{kRows};
  return left < 0 ? 0 : left < kRows ? static_cast<int>(left) : kRows;
}

// States of the block's sequences on their way between memory, [rows, hidden], and shared memory,
// [kRows][Units + 8]: neighbouring threads on neighbouring numbers, and no address that would have
// to stay in registers while the steps go by. What does not exist is zero in shared memory. No
// barriers.
template <class T, int Units>
__device__ inline void load_states(T* shared, const T* from, int64_t hidden, int rows) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * Units; i += 4 * Units) {
    const int row = i / Units, unit = i % Units;
    const int64_t at = (blockIdx.x * int64_t{kRows} + row) * hidden + unit;
    const bool exists = from != nullptr && row < rows && unit < hidden;
    shared[row * (Units + 8) + unit] = exists ? from[at] : from_float<T>(0.0f);
  }
}

template <class T, int Units>
__device__ inline void store_states(T* to, const T* shared, int64_t hidden, int rows) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * Units; i += 4 * Units) {
    const int row = i / Units, unit = i % Units;
    const int64_t at = (blockIdx.x * int64_t{kRows} + row) * hidden + unit;
    if (row < rows && unit < hidden) to[at] = shared[row * (Units + 8) + unit];
  }
}

// The A fragment at depth k of [16][pitch] in shared memory.
template <class T>
__device__ inline void load_a(uint32_t (&a)[4], const T* shared, int pitch, int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ldmatrix_x4(a, shared + lane % 16 * pitch + k + lane / 16 * 8);
}

// One gate's B fragments of the units of this warp, from `from` [hidden, hidden], by way of
// `shared` [Units][Units + 8]: the whole block reads neighbouring numbers, and no thread many
// addresses.
template <class T, int Units>
__device__ inline void load_gate_weights(uint32_t (&weights)[Units / 16][2], T* shared,
                                         const T* from, const Place& place) {
  constexpr int kPitch = Units + 8;
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Units * Units; i += 4 * Units) {
    const int u = i / Units, k = i % Units;
    shared[u * kPitch + k] = u < place.hidden && k < place.hidden
                                 ? from[int64_t{u} * place.hidden + k]
                                 : from_float<T>(0.0f);
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < Units / 16; k += 2) {
    uint32_t both[4];
    ldmatrix_x4(both, shared + (place.warp * 8 + lane % 8) * kPitch + k * 16 + lane / 8 * 8);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      weights[k][r] = both[r];
      weights[k + 1][r] = both[2 + r];
    }
  }
}

template <class T, int Units>
__global__ void __launch_bounds__(4 * Units, 1)
    lstm_persistent_forward_kernel(PersistentForward<T> call) {
  constexpr int kPitch = Units + 8;
  FC_DYNAMIC_SHARED(T, h_shared);  // [2][kRows][kPitch]
  const Place place(call.hidden);
  const int64_t hidden = call.hidden, row0 = blockIdx.x * int64_t{kRows};
  const int owned = own_rows(call.time.batch);

  uint32_t weights[4][Units / 16][2];
#pragma unroll
  for (int gate = 0; gate < 4; ++gate)
    load_gate_weights<T, Units>(weights[gate], h_shared, call.weight_hh + gate * hidden * hidden,
                                place);

  T* mine =
      h_shared + place.row(0) * kPitch + place.unit(0);  // element e: + (e / 2) * 8 rows + e % 2
  __syncthreads();
  load_states<T, Units>(h_shared, call.h_0, hidden, owned);
  load_states<T, Units>(h_shared + kRows * kPitch, call.c_0, hidden, owned);
  __syncthreads();
  float c[4];  // h is in shared memory alone
#pragma unroll
  for (int e = 0; e < 4; ++e) c[e] = to_float(mine[(kRows + e / 2 * 8) * kPitch + e % 2]);

  int buffer = 0;
  for (int n = 0; n < call.time.steps; ++n) {
    const int step = call.time.nth_step(n);
    const int active = own_rows(call.time.active(step));
    const int64_t start = (call.time.first_row(step) + row0) * hidden;
    // The sums start from what the inputs give: registers for both do not exist at 128 units.
    float sums[4][4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      LstmGates<float> pre{};
      if (place.among(e, active)) pre = load_gates(call.pre + start * 4 + place.at(e) * 4);
      sums[0][e] = pre.i;
      sums[1][e] = pre.f;
      sums[2][e] = pre.g;
      sums[3][e] = pre.o;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < Units / 16; ++k) {
      uint32_t a[4];
      load_a(a, h_shared + buffer * kRows * kPitch, kPitch, k * 16);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate)
        mma_m16n8k16(sums[gate], a, weights[gate][k], MmaTag<T>{});
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      T* in_shared = mine + e / 2 * 8 * kPitch + e % 2;
      T h = in_shared[buffer * kRows * kPitch];
      if (place.among(e, active)) {
        const LstmGates<float> z =
            lstm_activate(LstmGates<float>{sums[0][e], sums[1][e], sums[2][e], sums[3][e]});
        c[e] = lstm_cell_state(z, c[e]);
        h = from_float<T>(lstm_cell_output(z, c[e]));
        (call.output + start)[place.at(e)] = h;
        if (call.gates != nullptr) {
          store_gates(call.gates + start * 4 + place.at(e) * 4, z);
          (call.cells + start)[place.at(e)] = from_float<T>(c[e]);
        }
      }
      in_shared[(buffer ^ 1) * kRows * kPitch] = h;
    }
    buffer ^= 1;
  }
  __syncthreads();  // the other buffer is read no more
  T* const c_shared = mine + (buffer ^ 1) * kRows * kPitch;
#pragma unroll
  for (int e = 0; e < 4; ++e) c_shared[e / 2 * 8 * kPitch + e % 2] = from_float<T>(c[e]);
  __syncthreads();
  store_states<T, Units>(call.h_n, h_shared + buffer * kRows * kPitch, hidden, owned);
  store_states<T, Units>(call.c_n, h_shared + (buffer ^ 1) * kRows * kPitch, hidden, owned);
}

// The backward pass' B fragments: weights[k][r] holds two gates of unit 4 k + 2 r + t / 2, the
// first two for even t and the others for odd t, towards unit `warp * 8 + g` before. By way of
// `shared` again, Units / 2 units of two gates at a time: [unit][towards][gate].
template <class T, int Units>
__device__ inline void load_gate_pairs(uint32_t (&weights)[Units / 4][2], T* shared,
                                       const T* weight_hh, const Place& place) {
  constexpr int kHalf = Units / 2;
  const int hidden = place.hidden;
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const int first_gate = part / 2 * 2, first_unit = part % 2 * kHalf;
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kHalf * Units; i += 4 * Units) {
      const int gate = i / (kHalf * Units), u = i / Units % kHalf, to = i % Units;
      const bool inside = first_unit + u < hidden && to < hidden;
      const int64_t row = int64_t{first_gate + gate} * hidden + first_unit + u;
      shared[(u * Units + to) * 2 + gate] =
          inside ? weight_hh[row * hidden + to] : from_float<T>(0.0f);
    }
    __syncthreads();
    if (place.t % 2 * 2 != first_gate) continue;
    const T* pairs = shared + (place.t / 2 * Units + place.warp * 8 + place.g) * 2;
#pragma unroll
    for (int k = 0; k < kHalf / 4; ++k)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Vec<T, 2> pair = load_vector<2>(pairs + (4 * k + 2 * r) * Units * 2);
        weights[part % 2 * (kHalf / 4) + k][r] = pack_pair(pair[0], pair[1]);
      }
  }
}

template <class T, int Units>
__global__ void __launch_bounds__(4 * Units, 1)
    lstm_persistent_backward_kernel(PersistentBackward<T> call) {
  constexpr int kDepth = 4 * Units, kPitch = kDepth + 8;
  FC_DYNAMIC_SHARED(T, dz_shared);  // [2][kRows][kPitch], the gates of a unit together
  const Place place(call.hidden);
  const int64_t hidden = call.hidden, row0 = blockIdx.x * int64_t{kRows};
  const int owned = own_rows(call.time.batch);

  uint32_t weights[kDepth / 16][2];
  static_assert(Units * Units <= 2 * kRows * kPitch, "the pairs of half of the units fit");
  load_gate_pairs<T, Units>(weights, dz_shared, call.weight_hh, place);

  // The states pass through the two buffers, [kRows][Units + 8] at the start of each.
  T* const states[2] = {dz_shared, dz_shared + kRows * kPitch};
  const int mine = place.row(0) * (Units + 8) + place.unit(0);
  __syncthreads();
  load_states<T, Units>(states[0], call.grad_h_n, hidden, owned);
  load_states<T, Units>(states[1], call.grad_c_n, hidden, owned);
  __syncthreads();
  float grad_h[4], grad_c[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int at = mine + e / 2 * 8 * (Units + 8) + e % 2;
    grad_h[e] = to_float(states[0][at]);
    grad_c[e] = to_float(states[1][at]);
  }
  __syncthreads();

  int buffer = 0;
  for (int n = call.time.steps - 1; n >= 0; --n) {
    const int step = call.time.nth_step(n);
    const int active = own_rows(call.time.active(step));
    const int64_t start = (call.time.first_row(step) + row0) * hidden;
    int continued = 0;
    const T* cells_before = call.cells;
    if (n > 0) {
      const int step_before = call.time.nth_step(n - 1);
      continued = own_rows(call.time.active(step_before));
      cells_before += (call.time.first_row(step_before) + row0) * hidden;
    }
    T* dz_step = dz_shared + buffer * kRows * kPitch;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      LstmGates<float> dz{};
      if (place.among(e, active)) {
        const int at = place.at(e);
        const float before = place.row(e) < continued ? to_float(cells_before[at])
                                                      : load_or_zero(call.c_0, row0 * hidden + at);
        const LstmUnitGradients<float> g = lstm_unit_gradients(
            load_gates(call.gates + start * 4 + at * 4), to_float((call.cells + start)[at]), before,
            grad_h[e] + load_or_zero(call.grad_output, start + at), grad_c[e]);
        dz = g.gates;
        grad_c[e] = g.cell_before;
        store_gates(call.grad_gates + start * 4 + at * 4, dz);
      }
      store_gates(dz_step + place.row(e) * kPitch + place.unit(e) * 4, dz);
    }
    __syncthreads();
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[4];
      load_a(a, dz_step, kPitch, k * 16);
      mma_m16n8k16(sums[k % 2], a, weights[k], MmaTag<T>{});
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (place.row(e) < active) grad_h[e] = sums[0][e] + sums[1][e];
    buffer ^= 1;
  }
  __syncthreads();  // dz is read no more
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int at = mine + e / 2 * 8 * (Units + 8) + e % 2;
    states[0][at] = from_float<T>(grad_h[e]);
    states[1][at] = from_float<T>(grad_c[e]);
  }
  __syncthreads();
  store_states<T, Units>(call.grad_h_0, states[0], hidden, owned);
  store_states<T, Units>(call.grad_c_0, states[1], hidden, owned);
}

unsigned blocks_for(int64_t batch) {
  return static_cast<unsigned>((batch + kRows - 1) / kRows);
}

// Room for the weights of one gate on their way to the registers, and for two buffers of h.
template <int Units>
inline constexpr int kForwardElements = (Units > 2 * kRows ? Units : 2 * kRows) * (Units + 8);

template <class T, int Units>
cudaError_t forward_with(const PersistentForward<T>& call, cudaStream_t stream) {
  return FC_LAUNCH((lstm_persistent_forward_kernel<T, Units>), blocks_for(call.time.batch),
                   4 * Units, kForwardElements<Units> * sizeof(T), stream, call);
}

template <class T, int Units>
cudaError_t backward_with(const PersistentBackward<T>& call, cudaStream_t stream) {
  return FC_LAUNCH((lstm_persistent_backward_kernel<T, Units>), blocks_for(call.time.batch),
                   4 * Units, 2 * kRows * (4 * Units + 8) * sizeof(T), stream, call);
}

template <class T>
cudaError_t forward(const PersistentForward<T>& call, cudaStream_t stream) {
  switch (persistent_units(call.hidden)) {
    case 32:
      return forward_with<T, 32>(call, stream);
    case 64:
      return forward_with<T, 64>(call, stream);
    case 96:
      return forward_with<T, 96>(call, stream);
    case 128:
      return forward_with<T, 128>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <class T>
cudaError_t backward(const PersistentBackward<T>& call, cudaStream_t stream) {
  switch (persistent_units(call.hidden)) {
    case 32:
      return backward_with<T, 32>(call, stream);
    case 64:
      return backward_with<T, 64>(call, stream);
    case 96:
      return backward_with<T, 96>(call, stream);
    case 128:
      return backward_with<T, 128>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

template <>
cudaError_t launch_lstm_persistent_forward(const PersistentForward<__nv_bfloat16>& call,
                                           cudaStream_t stream) {
  return forward(call, stream);
}
template <>
cudaError_t launch_lstm_persistent_forward(const PersistentForward<__half>& call,
                                           cudaStream_t stream) {
  return forward(call, stream);
}
template <>
cudaError_t launch_lstm_persistent_backward(const PersistentBackward<__nv_bfloat16>& call,
                                            cudaStream_t stream) {
  return backward(call, stream);
}
template <>
cudaError_t launch_lstm_persistent_backward(const PersistentBackward<__half>& call,
                                            cudaStream_t stream) {
  return backward(call, stream);
}

}  // namespace fastconv::cuda
