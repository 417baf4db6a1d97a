// SPDX-License-Identifier: MIT
// Forward pass of an LSTM layer. The products with the inputs of all steps come first (with one
// step they are part of it); then either the persistent kernel, or per step
//
//   z = pre + h W_hh^T, whose columns are numbered gate by gate of a unit, 64 = 16 units to a tile:
//   the thread that has summed the four gates of a unit finishes it
//
// and with a projection one more product, h = m W_hr^T. Where pre-activations and gates are of one
// type they share the memory: a thread replaces what it has read.
#include "cuda/gemm/gemm.cuh"
#include "cuda/gemm/product.cuh"
#include "cuda/lstm/lstm_plan.cuh"
#include "cuda/lstm/lstm_units.cuh"

namespace fastconv::cuda {
namespace {

// One step: rows are sequences, columns gates. What is nullptr is zeros, or not wanted.
template <class T>
struct LstmStep {
  Product<T> product;
  int64_t hidden;
  int64_t continued;         // rows whose cell state is in `state`; the others start from c_0
  int64_t kept;              // rows from here on end with this step
  const Accumulate<T>* pre;  // [rows, H, 4]; nullptr: the biases
  const T* bias_ih;
  const T* bias_hh;
  const T* c_0;
  Accumulate<T>* state;  // [B, H]
  T* out;                // [rows, H]
  T* h_n;
  T* c_n;
  T* gates;
  T* cells;
};

template <class T>
__device__ void finish_unit(const LstmStep<T>& s, int64_t row, int64_t unit,
                            LstmGates<Accumulate<T>> z) {
  const int64_t at = row * s.hidden + unit;
  if (s.pre != nullptr) {
    z = z + load_gates(s.pre + at * 4);
  } else {
    const T* biases[2] = {s.bias_ih, s.bias_hh};
#pragma unroll
    for (int b = 0; b < 2; ++b)
      z = z + LstmGates<Accumulate<T>>{load_or_zero(biases[b], unit),
                                       load_or_zero(biases[b], s.hidden + unit),
                                       load_or_zero(biases[b], 2 * s.hidden + unit),
                                       load_or_zero(biases[b], 3 * s.hidden + unit)};
  }
  z = lstm_activate(z);
  const Accumulate<T> before = row < s.continued ? s.state[at] : load_or_zero(s.c_0, at);
  const Accumulate<T> c = lstm_cell_state(z, before);
  const T m = from_accumulate<T>(lstm_cell_output(z, c));
  s.out[at] = m;
  s.state[at] = c;
  if (row >= s.kept) {
    if (s.h_n != nullptr) s.h_n[at] = m;
    if (s.c_n != nullptr) s.c_n[at] = from_accumulate<T>(c);
  }
  if (s.gates == nullptr) return;
  store_gates(s.gates + at * 4, z);
  s.cells[at] = from_accumulate<T>(c);
}

template <class TileType, class T>
__global__ void __launch_bounds__(TileType::kThreads, TileType::kBlocks)
    lstm_step_kernel(LstmStep<T> s) {
  run_product<TileType>(s.product, [&](int64_t row, int64_t column, const Accumulate<T>(&sums)[4]) {
    finish_unit<T>(s, row, column / 4, {sums[0], sums[1], sums[2], sums[3]});
  });
}

template <class T>
struct Memory {
  Accumulate<T>* pre;    // [N, H, 4]
  Accumulate<T>* state;  // [B, H]
  T* m;                  // [B, H] before the projection
  int64_t* row_start;    // [steps + 1]
  int64_t bytes;
};

template <class T>
Memory<T> lay_out(const LstmForward<T>& call) {
  const LstmShape& s = call.shape;
  const bool persistent = call.path == LstmPath::kPersistent;
  Workspace space(call.workspace);
  Memory<T> memory{};
  const bool shared = kKeepsSums<T> && call.gates != nullptr;
  if (persistent || s.steps > 1)
    memory.pre = space.take<Accumulate<T>>(shared ? 0 : s.rows() * s.gates());
  if (!persistent) memory.state = space.take<Accumulate<T>>(kKeepsSums<T> ? 0 : s.batch * s.hidden);
  memory.m = space.take<T>(s.projected ? s.batch * s.hidden : 0);
  memory.row_start = space.take<int64_t>(persistent && s.row_start != nullptr ? s.steps + 1 : 0);
  memory.bytes = space.used();
  if constexpr (kKeepsSums<T>) {
    if (shared && (persistent || s.steps > 1)) memory.pre = call.gates;
    memory.state = call.c_n;
  }
  return memory;
}

template <class T>
cudaError_t run_persistent(const LstmForward<T>& call, const Memory<T>& memory,
                           cudaStream_t stream) {
  if constexpr (sizeof(T) == 8) {
    return cudaErrorInvalidValue;  // choose_lstm_path never says so
  } else {
    const LstmShape& s = call.shape;
    if (s.row_start != nullptr) {
      const cudaError_t status =
          launch_store_integers(s.row_start, s.steps + 1, memory.row_start, stream);
      if (status != cudaSuccess) return status;
    }
    return launch_lstm_persistent_forward<T>(
        {timeline(s, memory.row_start), s.hidden, memory.pre, call.h_0, call.c_0, call.weight_hh,
         call.output, call.h_n, call.c_n, call.gates, call.cells},
        stream);
  }
}

template <class T>
cudaError_t launch_step(const LstmStep<T>& step, GemmMath math, cudaStream_t stream) {
  const Product<T>& p = step.product;
  return with_tile<T, true, true>(p.rows, math, [&](auto* tile) {
    using TileType = std::remove_pointer_t<decltype(tile)>;
    return FC_LAUNCH((lstm_step_kernel<TileType, T>), product_grid<TileType>(p.rows, p.columns),
                     TileType::kThreads, TileType::kSharedBytes, stream, step);
  });
}

template <class T>
cudaError_t run_step(const LstmForward<T>& call, const Memory<T>& memory, int64_t n,
                     cudaStream_t stream) {
  const LstmShape& s = call.shape;
  const int64_t t = s.nth_step(n), rows = s.active(t), first = s.first_row(t);
  const int64_t continued = s.continued(t);
  // Rows that the next step goes on with; no sequence ends on the way to a longer step.
  const int64_t kept =
      n + 1 < s.steps ? (s.active(s.nth_step(n + 1)) < rows ? s.active(s.nth_step(n + 1)) : rows)
                      : 0;
  const T* h_before =
      continued > 0 ? call.output + s.first_row(s.step_before(t)) * s.output : nullptr;
  const Matrix<T> h = make_split_matrix(h_before, continued, call.h_0, rows, s.output, s.output);
  const Matrix<T> weight_hh = make_matrix(call.weight_hh, s.gates(), s.output, s.output, s.hidden);
  LstmStep<T> step{};
  step.product = make_product(h, weight_hh, rows, s.gates(),
                              continued > 0 || call.h_0 != nullptr ? s.output : 0);
  if (memory.pre != nullptr) {
    step.pre = memory.pre + first * s.gates();
  } else {
    step.product.a2 = make_matrix(call.input + first * s.input, rows, s.input, s.input);
    step.product.b2 = make_matrix(call.weight_ih, s.gates(), s.input, s.input, s.hidden);
    step.product.depth2 = s.input;
    step.bias_ih = call.bias_ih;
    step.bias_hh = call.bias_hh;
  }
  step.hidden = s.hidden;
  step.continued = continued;
  step.kept = kept;
  step.c_0 = call.c_0;
  step.state = memory.state;
  step.out = s.projected ? memory.m : call.output + first * s.output;
  step.h_n = s.projected ? nullptr : call.h_n;
  step.c_n = kKeepsSums<T> ? nullptr : call.c_n;
  step.gates = call.gates == nullptr ? nullptr : call.gates + first * s.gates();
  step.cells = call.gates == nullptr ? nullptr : call.cells + first * s.hidden;
  const cudaError_t status = launch_step(step, gemm_math(call.allow_tf32), stream);
  if (status != cudaSuccess || !s.projected) return status;
  const T* none = nullptr;
  return launch_gemm_nt(make_matrix<T>(memory.m, rows, s.hidden, s.hidden),
                        make_matrix(call.weight_hr, s.output, s.hidden, s.hidden), none, none,
                        GemmResult<T>{call.output + first * s.output, s.output, 0, call.h_n, kept},
                        gemm_math(call.allow_tf32), stream);
}

}  // namespace

template <class T>
int64_t lstm_forward_workspace_bytes(const LstmForward<T>& call) {
  LstmForward<T> counting = call;
  counting.workspace = nullptr;
  return lay_out(counting).bytes;
}

template <class T>
cudaError_t launch_lstm_forward(const LstmForward<T>& call, cudaStream_t stream) {
  const LstmShape& s = call.shape;
  const Memory<T> memory = lay_out(call);
  cudaError_t status = cudaSuccess;
  if (memory.pre != nullptr)
    status = launch_gemm_nt(make_matrix(call.input, s.rows(), s.input, s.input),
                            make_matrix(call.weight_ih, s.gates(), s.input, s.input, s.hidden),
                            call.bias_ih, call.bias_hh,
                            GemmResult<Accumulate<T>>{memory.pre, s.gates(), 0, nullptr, 0},
                            gemm_math(call.allow_tf32), stream);
  if (status != cudaSuccess) return status;
  if (call.path == LstmPath::kPersistent) return run_persistent(call, memory, stream);
  const int64_t longest = s.active(0);
  if (longest < s.batch) {
    status = launch_lstm_copy_states(call.h_0, longest, s.batch, s.output, call.h_n, stream);
    if (status == cudaSuccess)
      status = launch_lstm_copy_states(call.c_0, longest, s.batch, s.hidden, call.c_n, stream);
  }
  for (int64_t n = 0; n < s.steps && status == cudaSuccess; ++n)
    status = run_step(call, memory, n, stream);
  return status;
}

template int64_t lstm_forward_workspace_bytes(const LstmForward<float>&);
template int64_t lstm_forward_workspace_bytes(const LstmForward<double>&);
template int64_t lstm_forward_workspace_bytes(const LstmForward<__nv_bfloat16>&);
template int64_t lstm_forward_workspace_bytes(const LstmForward<__half>&);
template cudaError_t launch_lstm_forward(const LstmForward<float>&, cudaStream_t);
template cudaError_t launch_lstm_forward(const LstmForward<double>&, cudaStream_t);
template cudaError_t launch_lstm_forward(const LstmForward<__nv_bfloat16>&, cudaStream_t);
template cudaError_t launch_lstm_forward(const LstmForward<__half>&, cudaStream_t);

}  // namespace fastconv::cuda
