// SPDX-License-Identifier: MIT
// Backward pass of an LSTM layer. The recurrence only needs the gradients of the later step's gates
// times W_hh: the persistent kernel, or per step
//
//   grad_h = dz_later W_hh, and with a projection grad_m = grad_h W_hr
//
// whose blocks go on from the sums of their tile to the gradients dz of this step's gates. When the
// dz of all steps stand in memory, [N, H, 4], everything else is one product each: grad_input =
// dz W_ih, and the weight gradients as sums over all rows, cut into runs of rows that are added in
// order.
#include "cuda/gemm/gemm.cuh"
#include "cuda/gemm/product.cuh"
#include "cuda/lstm/lstm_plan.cuh"
#include "cuda/lstm/lstm_units.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;

// Rows of the later step and of this one, as the blocks of a step need them.
struct StepRows {
  int64_t rows;       // of this step; more rows of the later step began there
  int64_t resumed;    // rows that the later step has too: the others end here
  int64_t continued;  // rows that the step before has too: the others begin here
};

// Gradients of the gates of one step from grad_h (grad_m when projected), which the product gives.
template <class T>
struct LstmGradStep {
  Product<T> product;
  StepRows step;
  int64_t hidden;
  bool projected;
  const T* grad_output;  // [rows, H]; nullptr with a projection, which has added it
  const T* grad_h_n;
  const T* grad_c_n;
  const T* gates;         // [rows, H, 4]
  const T* cells;         // [rows, H]
  const T* cells_before;  // [continued, H]
  const T* c_0;
  Accumulate<T>* state;  // [B, H] gradients of cells
  T* grad_gates;         // [rows, H, 4]
  T* grad_h_0;
  T* grad_c_0;  // nullptr where it is `state`
};

template <class T>
__device__ void finish_unit(const LstmGradStep<T>& s, int64_t row, int64_t unit,
                            Accumulate<T> sum) {
  const int64_t at = row * s.hidden + unit;
  if (row >= s.step.rows) {
    s.grad_h_0[at] = from_accumulate<T>(sum);
    return;
  }
  const bool resumed = row < s.step.resumed;
  Accumulate<T> grad_m = resumed || s.projected ? sum : load_or_zero(s.grad_h_n, at);
  grad_m += load_or_zero(s.grad_output, at);
  const Accumulate<T> before =
      row < s.step.continued ? to_accumulate(s.cells_before[at]) : load_or_zero(s.c_0, at);
  const LstmUnitGradients<Accumulate<T>> g =
      lstm_unit_gradients(load_gates(s.gates + at * 4), to_accumulate(s.cells[at]), before, grad_m,
                          resumed ? s.state[at] : load_or_zero(s.grad_c_n, at));
  store_gates(s.grad_gates + at * 4, g.gates);
  s.state[at] = g.cell_before;
  if (s.grad_c_0 != nullptr && row >= s.step.continued)
    s.grad_c_0[at] = from_accumulate<T>(g.cell_before);
}

template <class TileType, class T>
__global__ void __launch_bounds__(TileType::kThreads, TileType::kBlocks)
    lstm_grad_step_kernel(LstmGradStep<T> s) {
  run_product<TileType>(s.product, [&](int64_t row, int64_t column, const Accumulate<T>(&sums)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (column + j < s.hidden) finish_unit<T>(s, row, column + j, sums[j]);
  });
}

// With a projection: grad_h of one step, gradient of the output included, for what comes after.
template <class T>
struct LstmGradOutput {
  Product<T> product;
  StepRows step;
  const T* grad_output;  // [rows, P]
  const T* grad_h_n;
  T* grad_h;  // [rows, P]
  T* grad_h_0;
};

template <class TileType, class T>
__global__ void __launch_bounds__(TileType::kThreads, TileType::kBlocks)
    lstm_grad_output_kernel(LstmGradOutput<T> s) {
  run_product<TileType>(s.product, [&](int64_t row, int64_t column, const Accumulate<T>(&sums)[4]) {
    const int64_t width = s.product.columns;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (column + j >= width) continue;
      const int64_t at = row * width + column + j;
      if (row >= s.step.rows) {
        s.grad_h_0[at] = from_accumulate<T>(sums[j]);
      } else {
        const Accumulate<T> later = row < s.step.resumed ? sums[j] : load_or_zero(s.grad_h_n, at);
        s.grad_h[at] = from_accumulate<T>(later + load_or_zero(s.grad_output, at));
      }
    }
  });
}

// The state that every row started from, [N, P]: that of the step before, or the initial one.
template <class T>
struct StatesBefore {
  const T* output;
  const T* h_0;
  const int64_t* row_start;
  int64_t steps, batch, width, rows;
  bool reverse;
  T* to;
};

// The step of a row: the last one that does not begin after it.
template <class T>
__device__ inline int64_t step_of(const StatesBefore<T>& s, int64_t row) {
  if (s.row_start == nullptr) return row / s.batch;
  int64_t low = 0, high = s.steps;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (s.row_start[middle] <= row)
      low = middle;
    else
      high = middle;
  }
  return low;
}

template <class T>
__global__ void __launch_bounds__(kThreads) lstm_states_before_kernel(StatesBefore<T> s) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= s.rows * s.width) return;
  const int64_t row = i / s.width, column = i - row * s.width;
  const int64_t step = step_of(s, row);
  const auto first = [&](int64_t t) {
    return s.row_start == nullptr ? t * s.batch : s.row_start[t];
  };
  const int64_t r = row - first(step), before = s.reverse ? step + 1 : step - 1;
  const bool continued = before >= 0 && before < s.steps && r < first(before + 1) - first(before);
  s.to[i] = continued ? s.output[(first(before) + r) * s.width + column]
                      : from_accumulate<T>(load_or_zero(s.h_0, r * s.width + column));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    lstm_cell_outputs_kernel(const T* gates, const T* cells, int64_t count, T* m) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < count)
    m[i] = from_accumulate<T>(lstm_cell_output(load_gates(gates + i * 4), to_accumulate(cells[i])));
}

template <class T>
struct Memory {
  T* grad_gates;         // [N, H, 4]
  Accumulate<T>* state;  // [B, H]
  T* grad_h;             // [N, P], projected
  T* h_before;           // [N, P]
  T* m;                  // [N, H]
  int64_t* row_start;
  void* runs;  // of sums over rows
  int64_t bytes;
};

template <class T>
int64_t sum_bytes(const LstmBackward<T>& call) {
  const LstmShape& s = call.shape;
  int64_t most = 0;
  const auto need = [&](bool wanted, int64_t bytes) {
    most = wanted && bytes > most ? bytes : most;
  };
  need(call.grad_weight_ih != nullptr, gemm_tn_workspace_bytes<T>(s.gates(), s.input, s.rows()));
  need(call.grad_weight_hh != nullptr, gemm_tn_workspace_bytes<T>(s.gates(), s.output, s.rows()));
  need(call.grad_weight_hr != nullptr, gemm_tn_workspace_bytes<T>(s.output, s.hidden, s.rows()));
  need(call.grad_bias != nullptr, column_sums_workspace_bytes<T>(s.rows(), s.gates()));
  return most;
}

template <class T>
Memory<T> lay_out(const LstmBackward<T>& call) {
  const LstmShape& s = call.shape;
  const bool persistent = call.path == LstmPath::kPersistent;
  Workspace space(call.workspace);
  Memory<T> memory{};
  memory.grad_gates = space.take<T>(s.rows() * s.gates());
  memory.state = space.take<Accumulate<T>>(kKeepsSums<T> || persistent ? 0 : s.batch * s.hidden);
  memory.grad_h = space.take<T>(s.projected ? s.rows() * s.output : 0);
  memory.h_before = space.take<T>(call.grad_weight_hh != nullptr ? s.rows() * s.output : 0);
  memory.m = space.take<T>(call.grad_weight_hr != nullptr ? s.rows() * s.hidden : 0);
  memory.row_start = space.take<int64_t>(s.row_start != nullptr ? s.steps + 1 : 0);
  memory.runs = space.take<unsigned char>(sum_bytes(call));
  memory.bytes = space.used();
  if constexpr (kKeepsSums<T>) memory.state = call.grad_c_0;
  return memory;
}

template <class T>
class StepsBackward {
 public:
  StepsBackward(const LstmBackward<T>& call, const Memory<T>& memory, cudaStream_t stream)
      : call_(call), s_(call.shape), memory_(memory), stream_(stream) {}

  cudaError_t run() {
    const int64_t longest = s_.active(0);
    cudaError_t status = cudaSuccess;
    if (longest < s_.batch) {
      status = launch_lstm_copy_states(call_.grad_h_n, longest, s_.batch, s_.output, call_.grad_h_0,
                                       stream_);
      if (status == cudaSuccess)
        status = launch_lstm_copy_states(call_.grad_c_n, longest, s_.batch, s_.hidden,
                                         call_.grad_c_0, stream_);
    }
    for (int64_t n = s_.steps - 1; n >= 0 && status == cudaSuccess; --n) {
      if (s_.projected) status = grad_output(n);
      if (status == cudaSuccess) status = grad_gates(n);
    }
    if (status != cudaSuccess) return status;
    const int64_t first = s_.nth_step(0);
    return launch_gemm_nn(gate_gradients(first), weight_hh(),
                          GemmResult<T>{call_.grad_h_0, s_.output, 0, nullptr, 0},
                          gemm_math(call_.allow_tf32), stream_);
  }

 private:
  Matrix<T> gate_gradients(int64_t step) const {
    return make_matrix<T>(memory_.grad_gates + s_.first_row(step) * s_.gates(), s_.active(step),
                          s_.gates(), s_.gates());
  }
  Matrix<T> weight_hh() const {
    return make_matrix(call_.weight_hh, s_.gates(), s_.output, s_.output, s_.hidden);
  }

  StepRows rows_of(int64_t n) const {
    const int64_t t = s_.nth_step(n), rows = s_.active(t);
    const int64_t later = n + 1 < s_.steps ? s_.active(s_.nth_step(n + 1)) : 0;
    return {rows, later < rows ? later : rows, s_.continued(t)};
  }

  // dz of the later step times W_hh, over the rows of either step.
  Product<T> through_recurrence(int64_t n) const {
    const int64_t rows = s_.active(s_.nth_step(n));
    if (n + 1 == s_.steps) {
      const Matrix<T> nothing = make_matrix<T>(nullptr, 0, 0, 0);
      return make_product(nothing, nothing, rows, s_.output, 0);
    }
    const Matrix<T> dz = gate_gradients(s_.nth_step(n + 1));
    return make_product(dz, weight_hh(), dz.rows > rows ? dz.rows : rows, s_.output, s_.gates());
  }

  const T* grad_output_of(int64_t step) const {
    return call_.grad_output == nullptr ? nullptr
                                        : call_.grad_output + s_.first_row(step) * s_.output;
  }

  cudaError_t grad_output(int64_t n) const {
    const int64_t t = s_.nth_step(n);
    const LstmGradOutput<T> step{through_recurrence(n),
                                 rows_of(n),
                                 grad_output_of(t),
                                 call_.grad_h_n,
                                 memory_.grad_h + s_.first_row(t) * s_.output,
                                 call_.grad_h_0};
    return with_tile<T, true, false>(
        step.product.rows, gemm_math(call_.allow_tf32), [&](auto* tile) {
          using TileType = std::remove_pointer_t<decltype(tile)>;
          return FC_LAUNCH((lstm_grad_output_kernel<TileType, T>),
                           product_grid<TileType>(step.product.rows, step.product.columns),
                           TileType::kThreads, TileType::kSharedBytes, stream_, step);
        });
  }

  cudaError_t grad_gates(int64_t n) const {
    const int64_t t = s_.nth_step(n), first = s_.first_row(t);
    LstmGradStep<T> step{};
    step.step = rows_of(n);
    if (s_.projected) {
      step.product = make_product(
          make_matrix<T>(memory_.grad_h + first * s_.output, step.step.rows, s_.output, s_.output),
          make_matrix(call_.weight_hr, s_.output, s_.hidden, s_.hidden), step.step.rows, s_.hidden,
          s_.output);
    } else {
      step.product = through_recurrence(n);
      step.grad_output = grad_output_of(t);
      step.grad_h_n = call_.grad_h_n;
    }
    step.hidden = s_.hidden;
    step.projected = s_.projected;
    step.grad_c_n = call_.grad_c_n;
    step.gates = call_.gates + first * s_.gates();
    step.cells = call_.cells + first * s_.hidden;
    if (step.step.continued > 0)
      step.cells_before = call_.cells + s_.first_row(s_.step_before(t)) * s_.hidden;
    step.c_0 = call_.c_0;
    step.state = memory_.state;
    step.grad_gates = memory_.grad_gates + first * s_.gates();
    step.grad_h_0 = call_.grad_h_0;
    step.grad_c_0 = kKeepsSums<T> ? nullptr : call_.grad_c_0;
    return with_tile<T, true, false>(
        step.product.rows, gemm_math(call_.allow_tf32), [&](auto* tile) {
          using TileType = std::remove_pointer_t<decltype(tile)>;
          return FC_LAUNCH((lstm_grad_step_kernel<TileType, T>),
                           product_grid<TileType>(step.product.rows, step.product.columns),
                           TileType::kThreads, TileType::kSharedBytes, stream_, step);
        });
  }

  const LstmBackward<T>& call_;
  const LstmShape& s_;
  const Memory<T>& memory_;
  cudaStream_t stream_;
};

template <class T>
cudaError_t run_persistent(const LstmBackward<T>& call, const Memory<T>& memory,
                           cudaStream_t stream) {
  if constexpr (sizeof(T) == 8) {
    return cudaErrorInvalidValue;  // choose_lstm_path never says so
  } else {
    const LstmShape& s = call.shape;
    return launch_lstm_persistent_backward<T>(
        {timeline(s, memory.row_start), s.hidden, call.c_0, call.weight_hh, call.gates, call.cells,
         call.grad_output, call.grad_h_n, call.grad_c_n, memory.grad_gates, call.grad_h_0,
         call.grad_c_0},
        stream);
  }
}

// grad_weight = sum over rows of dz x inputs, in the order of weights.
template <class T>
cudaError_t weight_gradient(const LstmBackward<T>& call, const Memory<T>& memory, const T* inputs,
                            int64_t width, T* grad_weight, cudaStream_t stream) {
  if (grad_weight == nullptr) return cudaSuccess;
  const LstmShape& s = call.shape;
  return launch_gemm_tn(make_matrix<T>(memory.grad_gates, s.rows(), s.gates(), s.gates()),
                        make_matrix(inputs, s.rows(), width, width),
                        GemmResult<T>{grad_weight, width, s.hidden, nullptr, 0}, memory.runs,
                        gemm_math(call.allow_tf32), stream);
}

template <class T>
cudaError_t projection_gradient(const LstmBackward<T>& call, const Memory<T>& memory,
                                cudaStream_t stream) {
  if (call.grad_weight_hr == nullptr) return cudaSuccess;
  const LstmShape& s = call.shape;
  const int64_t count = s.rows() * s.hidden;
  const cudaError_t status =
      FC_LAUNCH((lstm_cell_outputs_kernel<T>), blocks_for(count, kThreads), kThreads, 0, stream,
                call.gates, call.cells, count, memory.m);
  if (status != cudaSuccess) return status;
  return launch_gemm_tn(make_matrix<T>(memory.grad_h, s.rows(), s.output, s.output),
                        make_matrix<T>(memory.m, s.rows(), s.hidden, s.hidden),
                        GemmResult<T>{call.grad_weight_hr, s.hidden, 0, nullptr, 0}, memory.runs,
                        gemm_math(call.allow_tf32), stream);
}

template <class T>
cudaError_t recurrent_gradient(const LstmBackward<T>& call, const Memory<T>& memory,
                               cudaStream_t stream) {
  if (call.grad_weight_hh == nullptr) return cudaSuccess;
  const LstmShape& s = call.shape;
  const StatesBefore<T> states{call.output, call.h_0, memory.row_start, s.steps,        s.batch,
                               s.output,    s.rows(), s.reverse,        memory.h_before};
  const cudaError_t status =
      FC_LAUNCH((lstm_states_before_kernel<T>), blocks_for(s.rows() * s.output, kThreads), kThreads,
                0, stream, states);
  if (status != cudaSuccess) return status;
  return weight_gradient<T>(call, memory, memory.h_before, s.output, call.grad_weight_hh, stream);
}

}  // namespace

template <class T>
int64_t lstm_backward_workspace_bytes(const LstmBackward<T>& call) {
  LstmBackward<T> counting = call;
  counting.workspace = nullptr;
  return lay_out(counting).bytes;
}

template <class T>
cudaError_t launch_lstm_backward(const LstmBackward<T>& call, cudaStream_t stream) {
  const LstmShape& s = call.shape;
  const Memory<T> memory = lay_out(call);
  cudaError_t status = cudaSuccess;
  if (s.row_start != nullptr)
    status = launch_store_integers(s.row_start, s.steps + 1, memory.row_start, stream);
  if (status == cudaSuccess)
    status = call.path == LstmPath::kPersistent ? run_persistent(call, memory, stream)
                                                : StepsBackward<T>(call, memory, stream).run();
  if (status == cudaSuccess && call.grad_input != nullptr)
    status = launch_gemm_nn(make_matrix<T>(memory.grad_gates, s.rows(), s.gates(), s.gates()),
                            make_matrix(call.weight_ih, s.gates(), s.input, s.input, s.hidden),
                            GemmResult<T>{call.grad_input, s.input, 0, nullptr, 0},
                            gemm_math(call.allow_tf32), stream);
  if (status == cudaSuccess)
    status = weight_gradient(call, memory, call.input, s.input, call.grad_weight_ih, stream);
  if (status == cudaSuccess) status = recurrent_gradient(call, memory, stream);
  if (status == cudaSuccess) status = projection_gradient(call, memory, stream);
  if (status == cudaSuccess && call.grad_bias != nullptr)
    status = launch_column_sums(make_matrix<T>(memory.grad_gates, s.rows(), s.gates(), s.gates()),
                                s.hidden, call.grad_bias, memory.runs, stream);
  return status;
}

template int64_t lstm_backward_workspace_bytes(const LstmBackward<float>&);
template int64_t lstm_backward_workspace_bytes(const LstmBackward<double>&);
template int64_t lstm_backward_workspace_bytes(const LstmBackward<__nv_bfloat16>&);
template int64_t lstm_backward_workspace_bytes(const LstmBackward<__half>&);
template cudaError_t launch_lstm_backward(const LstmBackward<float>&, cudaStream_t);
template cudaError_t launch_lstm_backward(const LstmBackward<double>&, cudaStream_t);
template cudaError_t launch_lstm_backward(const LstmBackward<__nv_bfloat16>&, cudaStream_t);
template cudaError_t launch_lstm_backward(const LstmBackward<__half>&, cudaStream_t);

}  // namespace fastconv::cuda
