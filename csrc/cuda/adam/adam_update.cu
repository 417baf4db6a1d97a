// SPDX-License-Identifier: MIT
// The update: reads param, grad, exp_avg, exp_avg_sq (and max_exp_avg_sq) once, writes all but grad
// once, so memory is all that counts. One block per chunk of a tensor: 128-bit accesses between a
// head and a tail of single elements, tensor by tensor, so one odd tensor slows no other. Every
// thread works out the step's numbers by itself, from the step counter, in the tensor's arithmetic:
// about thirty instructions instead of a launch. The last block to finish stores the counters.
#include <type_traits>

#include "cuda/adam/adam.h"
#include "cuda/adam/adam_table.cuh"

namespace fastconv::cuda {
namespace {

template <class Real>
__device__ inline AdamCoefficientsOf<Real> coefficients_of(const AdamRates<Real>& rates,
                                                           Real step) {
  const Real lr = rates.lr_pointer == nullptr ? rates.lr : static_cast<Real>(*rates.lr_pointer);
  const Real correction = std::sqrt(adam_bias_correction(rates.log_beta2, step));
  AdamCoefficientsOf<Real> c;
  c.average_weight = rates.average_weight;
  c.average_from_grad = rates.average_from_grad;
  c.beta2 = rates.beta2;
  c.one_minus_beta2 = rates.one_minus_beta2;
  c.step_size = lr / adam_bias_correction(rates.log_beta1, step) * correction;
  c.eps = fold_adam_eps(rates.eps, correction);
  c.l2 = rates.decoupled ? Real{0} : rates.weight_decay;
  c.keep = rates.decoupled ? std::fma(-lr, rates.weight_decay, Real{1}) : Real{1};
  c.sign = rates.sign;
  return c;
}

// What happens to a gradient first.
template <class Real>
struct Gradient {
  Real unscale;
  Real factor;  // after it
  bool write_back;
};

template <class Real>
__device__ inline Gradient<Real> gradient_of(const float* grad_scale, const AdamState* norm,
                                             Real sign) {
  const bool scaled = grad_scale != nullptr;
  const Real factor = norm == nullptr ? Real{1} : static_cast<Real>(norm->factor);
  return {scaled ? Real{1} / static_cast<Real>(*grad_scale) : Real{1}, factor * sign, scaled};
}

// kCount neighbouring elements of every array.
template <AdamType kType, int kCount>
__device__ inline void update(const AdamEntry& entry, int64_t at,
                              const AdamCoefficientsOf<typename AdamTypes<kType>::Real>& c,
                              const Gradient<typename AdamTypes<kType>::Real>& how) {
  using Types = AdamTypes<kType>;
  using Element = typename Types::Element;
  using State = typename Types::State;
  using Real = typename Types::Real;
  // A vector of states may take two accesses.
  constexpr int kStates = kCount == 1 ? 1 : kPer128<State>;
  auto* params = static_cast<Element*>(entry.param) + at;
  auto* grads = static_cast<Element*>(entry.grad) + at;
  auto* averages = static_cast<State*>(entry.exp_avg) + at;
  auto* squares = static_cast<State*>(entry.exp_avg_sq) + at;
  auto* maxima = static_cast<State*>(entry.max_exp_avg_sq) + at;
  const bool amsgrad = entry.max_exp_avg_sq != nullptr;
  Vec<Element, kCount> p = load_vector<kCount>(params), g = load_vector<kCount>(grads);
#pragma unroll
  for (int first = 0; first < kCount; first += kStates) {
    Vec<State, kStates> m = load_vector<kStates>(averages + first);
    Vec<State, kStates> v = load_vector<kStates>(squares + first), largest{};
    if (amsgrad) largest = load_vector<kStates>(maxima + first);
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      Real param = to_accumulate(p[first + i]);
      const Real gradient = to_accumulate(g[first + i]) * how.unscale;
      if (how.write_back) g[first + i] = from_accumulate<Element>(gradient);
      adam_step_number<Real>(c, gradient * how.factor, param, m[i], v[i], amsgrad, largest[i]);
      p[first + i] = from_accumulate<Element>(param);
    }
    store_vector(averages + first, m);
    store_vector(squares + first, v);
    if (amsgrad) store_vector(maxima + first, largest);
  }
  store_vector(params, p);
  if (how.write_back) store_vector(grads, g);
}

// `norm` is nullptr when no norm was asked for.
template <AdamType kType, class Table>
__global__ void __launch_bounds__(kAdamThreads)
    adam_update_kernel(const __grid_constant__ Table table, const AdamState* norm) {
  using Types = AdamTypes<kType>;
  using Real = typename Types::Real;
  constexpr int kLanes = Types::kLanes;
  FC_DYNAMIC_SHARED(int32_t, flag);
  // The same in every block: all leave, and the ticket stays as it is.
  if (table.found_inf != nullptr && *table.found_inf != 0.0f) return;
  if (norm != nullptr && norm->skip != 0) return;

  const int32_t t = adam_tensor_of_block(table, blockIdx.x);
  const AdamEntry& entry = table.entries[t];
  const AdamRates<Real>& rates = table.groups[entry.group];
  const auto c = coefficients_of<Real>(rates, static_cast<Real>(*entry.step + 1.0f));
  const auto how = gradient_of<Real>(table.grad_scale, norm, c.sign);
  const AdamChunk chunk =
      adam_chunk_of_block<kLanes>(entry, blockIdx.x - table.first_block[t], table.chunk);
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t i = chunk.vector_begin + thread * kLanes; i < chunk.vector_end;
       i += kAdamThreads * kLanes)
    update<kType, kLanes>(entry, chunk.begin + i, c, how);
  for (int32_t i = thread; i < chunk.vector_begin; i += kAdamThreads)
    update<kType, 1>(entry, chunk.begin + i, c, how);
  for (int32_t i = chunk.vector_end + thread; i < chunk.size; i += kAdamThreads)
    update<kType, 1>(entry, chunk.begin + i, c, how);

  // Every block has read its counter by now.
  if (adam_last_block(&table.state->update_ticket, flag))
    for (int32_t i = thread; i < table.tensors; i += kAdamThreads) *table.entries[i].step += 1.0f;
}

template <AdamType kType>
cudaError_t launch_update_of(const AdamStep& step, int64_t chunk, cudaStream_t stream) {
  const AdamState* norm = adam_needs_norm(step) ? step.state : nullptr;
  return adam_for_tables<kType>(step, chunk, [&](const auto& table, uint32_t blocks) {
    using Table = std::decay_t<decltype(table)>;
    // Tensors without elements have no block of their own, but a step to count.
    return FC_LAUNCH((adam_update_kernel<kType, Table>), blocks == 0 ? 1 : blocks, kAdamThreads,
                     sizeof(int32_t), stream, table, norm);
  });
}

}  // namespace

int64_t adam_chunk(int64_t elements, int32_t multiprocessors) {
  constexpr int64_t kLeast = 2048, kMost = 65536, kBlocksPerMultiprocessor = 4;
  const int64_t even = ceil_div(elements, kBlocksPerMultiprocessor * multiprocessors);
  const int64_t rounded = ceil_div(even, kLeast) * kLeast;
  return rounded < kLeast ? kLeast : rounded > kMost ? kMost : rounded;
}

cudaError_t launch_adam_update(const AdamStep& step, cudaStream_t stream) {
  const int64_t chunk = adam_chunk(adam_elements(step), step.multiprocessors);
  cudaError_t status = launch_update_of<AdamType::kFloat32>(step, chunk, stream);
  if (status == cudaSuccess) status = launch_update_of<AdamType::kBfloat16>(step, chunk, stream);
  if (status == cudaSuccess) status = launch_update_of<AdamType::kFloat64>(step, chunk, stream);
  return status;
}

}  // namespace fastconv::cuda
