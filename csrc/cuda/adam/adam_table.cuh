// SPDX-License-Identifier: MIT
// The list of tensors as a kernel argument. It travels with the launch (32 KB at most, 4 KB when
// that is enough), so no copy to the GPU precedes it and a captured graph holds it. Longer lists
// take several launches. A block works on one chunk of one tensor; chunks begin where 16-byte
// vectors do.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/adam/adam.h"
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"

namespace fastconv::cuda {

inline constexpr int kAdamThreads = 256;
inline constexpr int64_t kAdamMaxArgumentBytes = 32764;
inline constexpr int64_t kAdamSmallArgumentBytes = 4096;

// Elements, state, arithmetic and the elements of one vector step of a type of tensors.
template <AdamType kType>
struct AdamTypes {
  using Element = std::conditional_t<kType == AdamType::kFloat64, double, float>;
  using State = Element;
  using Real = Element;
  static constexpr int kLanes = kPer128<Element>;
};
template <>
struct AdamTypes<AdamType::kBfloat16> {
  using Element = __nv_bfloat16;
  using State = float;
  using Real = float;
  static constexpr int kLanes = kPer128<Element>;
};

struct AdamEntry {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;
  float* step;
  int64_t size;
  int32_t group;
  int32_t offset;  // of the first element in its vector; negative: the arrays share no vectors
};

// What of a group's numbers does not depend on the step.
template <class Real>
struct AdamRates {
  const float* lr_pointer;
  Real lr;
  Real beta2;
  Real one_minus_beta2;
  Real average_weight;
  Real eps;
  Real weight_decay;
  Real sign;
  AdamLogBeta<Real> log_beta1;
  AdamLogBeta<Real> log_beta2;
  bool average_from_grad;
  bool decoupled;
};

template <class Real, int kTensorsOf, int kGroupsOf>
struct AdamTable {
  static constexpr int kTensors = kTensorsOf;
  static constexpr int kGroups = kGroupsOf;

  AdamEntry entries[kTensors];
  uint32_t first_block[kTensors];
  AdamRates<Real> groups[kGroups];
  int32_t tensors;
  int32_t chunk;
  const float* grad_scale;
  const float* found_inf;
  AdamState* state;
};

// What the norm kernel is told beside the table.
struct AdamNorm {
  double* sums;     // one per block of all launches
  int32_t* finite;  // the same
  uint32_t before;  // blocks of earlier launches
  uint32_t all;     // blocks of all launches, in the last one; else zero
  double max_norm;
  double other_squares;
  bool others_finite;
  bool skip_nonfinite;
};

template <class Real>
using AdamSmallTable = AdamTable<Real, 40, 4>;
template <class Real>
using AdamLargeTable = AdamTable<Real, 420, 16>;

static_assert(sizeof(AdamSmallTable<double>) <= kAdamSmallArgumentBytes - sizeof(AdamNorm));
static_assert(sizeof(AdamLargeTable<double>) <= kAdamMaxArgumentBytes - sizeof(AdamNorm));

// --- Host: from the list to tables ---------------------------------------------------------------

template <class Real>
AdamRates<Real> adam_rates(const AdamGroup& g) {
  AdamRates<Real> r{};
  r.lr_pointer = g.lr_pointer;
  r.lr = static_cast<Real>(g.lr);
  r.beta2 = static_cast<Real>(g.beta2);
  r.one_minus_beta2 = static_cast<Real>(1.0 - g.beta2);
  r.average_weight = static_cast<Real>(adam_average_weight(g.beta1, &r.average_from_grad));
  r.eps = static_cast<Real>(g.eps);
  r.weight_decay = static_cast<Real>(g.weight_decay);
  r.sign = static_cast<Real>(g.maximize ? -1.0 : 1.0);
  r.log_beta1 = adam_log_beta<Real>(g.beta1);
  r.log_beta2 = adam_log_beta<Real>(g.beta2);
  r.decoupled = g.decoupled_weight_decay;
  return r;
}

// Where in its 16-byte vector the first element lies, if all arrays agree on it; else -1.
template <AdamType kType>
int32_t adam_offset(const AdamTensor& t) {
  using Types = AdamTypes<kType>;
  constexpr auto kElement = sizeof(typename Types::Element), kState = sizeof(typename Types::State);
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const uintptr_t offset = address(t.param) % 16 / kElement;
  const bool agree =
      address(t.grad) % 16 == offset * kElement &&
      address(t.exp_avg) % 16 == offset * kState % 16 &&
      address(t.exp_avg_sq) % 16 == offset * kState % 16 &&
      address(t.max_exp_avg_sq) % 16 == (t.max_exp_avg_sq == nullptr ? 0 : offset * kState % 16);
  return agree ? static_cast<int32_t>(offset) : -1;
}

inline int64_t adam_blocks(const AdamEntry& entry, int64_t chunk) {
  return entry.size == 0 ? 0 : ceil_div(entry.size + (entry.offset > 0 ? entry.offset : 0), chunk);
}

// Calls launch(table, blocks) for one table of `step` after the other, tensors of one type each; a
// launch without blocks still has tensors whose steps count. Stops at the first error.
template <class Table, AdamType kType, class Launch>
cudaError_t adam_for_tables_of(const AdamStep& step, int64_t chunk, const Launch& launch) {
  using Real = typename AdamTypes<kType>::Real;
  Table table;
  table.chunk = static_cast<int32_t>(chunk);
  table.grad_scale = step.grad_scale;
  table.found_inf = step.found_inf;
  table.state = step.state;
  table.tensors = 0;
  int32_t group_of[Table::kGroups], groups = 0;
  int64_t blocks = 0;
  const auto flush = [&]() -> cudaError_t {
    if (table.tensors == 0) return cudaSuccess;
    const cudaError_t status = launch(table, static_cast<uint32_t>(blocks));
    table.tensors = groups = 0;
    blocks = 0;
    return status;
  };
  for (int64_t i = 0; i < step.count; ++i) {
    const AdamTensor& t = step.tensors[i];
    if (t.type != kType) continue;
    AdamEntry entry{t.param, t.grad, t.exp_avg, t.exp_avg_sq,         t.max_exp_avg_sq,
                    t.step,  t.size, 0,         adam_offset<kType>(t)};
    const int64_t more = adam_blocks(entry, chunk);
    int32_t g = 0;
    while (g < groups && group_of[g] != t.group) ++g;
    if (table.tensors == Table::kTensors || g == Table::kGroups || blocks + more > kMaxGridX ||
        (step.ordered && table.tensors > 0)) {
      const cudaError_t status = flush();
      if (status != cudaSuccess) return status;
      g = 0;
    }
    if (g == groups) {
      group_of[groups++] = t.group;
      table.groups[g] = adam_rates<Real>(step.groups[t.group]);
    }
    entry.group = g;
    table.entries[table.tensors] = entry;
    table.first_block[table.tensors++] = static_cast<uint32_t>(blocks);
    blocks += more;
  }
  return flush();
}

// As above for all tensors of a type, in tables as small as they can be.
template <AdamType kType, class Launch>
cudaError_t adam_for_tables(const AdamStep& step, int64_t chunk, const Launch& launch) {
  using Real = typename AdamTypes<kType>::Real;
  int64_t tensors = 0, groups = 0;
  for (int64_t i = 0; i < step.count; ++i) {
    if (step.tensors[i].type != kType) continue;
    ++tensors;
    if (step.tensors[i].group >= groups) groups = step.tensors[i].group + 1;
  }
  using Small = AdamSmallTable<Real>;
  if (tensors <= Small::kTensors && groups <= Small::kGroups)
    return adam_for_tables_of<Small, kType>(step, chunk, launch);
  return adam_for_tables_of<AdamLargeTable<Real>, kType>(step, chunk, launch);
}

inline int64_t adam_elements(const AdamStep& step) {
  int64_t elements = 0;
  for (int64_t i = 0; i < step.count; ++i) elements += step.tensors[i].size;
  return elements;
}

// --- Device: what a block works on ---------------------------------------------------------------

// Elements begin .. end of a tensor, of which vector_begin .. vector_end come in whole vectors.
struct AdamChunk {
  int64_t begin;
  int32_t size;
  int32_t vector_begin;  // from begin on
  int32_t vector_end;
};

// The last tensor whose blocks begin at or before this one. Empty tensors have none of their own.
template <class Table>
__device__ inline int32_t adam_tensor_of_block(const Table& table, uint32_t block) {
  int32_t low = 0, high = table.tensors;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (table.first_block[middle] <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <int kLanes>
__device__ inline AdamChunk adam_chunk_of_block(const AdamEntry& entry, uint32_t block,
                                                int32_t chunk) {
  const int32_t offset = entry.offset > 0 ? entry.offset : 0;
  const int64_t from = static_cast<int64_t>(block) * chunk - offset;
  const int64_t begin = from > 0 ? from : 0;
  const int64_t end = from + chunk < entry.size ? from + chunk : entry.size;
  AdamChunk c{begin, end > begin ? static_cast<int32_t>(end - begin) : 0, 0, 0};
  if (entry.offset < 0) {
    c.vector_begin = c.vector_end = c.size;
    return c;
  }
  const int32_t head = begin == 0 ? (kLanes - offset) % kLanes : 0;
  c.vector_begin = head < c.size ? head : c.size;
  c.vector_end = c.vector_begin + (c.size - c.vector_begin) / kLanes * kLanes;
  return c;
}

// True in every thread of the block that comes last of all to this point; what the others wrote
// before it is then visible. `flag` is shared memory. The ticket is zero again after the last
// block.
__device__ inline bool adam_last_block(uint32_t* ticket, int32_t* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *flag = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return *flag != 0;
}

}  // namespace fastconv::cuda
