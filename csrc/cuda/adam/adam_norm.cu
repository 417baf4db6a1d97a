// SPDX-License-Identifier: MIT
// The norm of all gradients together, and what follows from it: the factor that clips them, and
// whether to step at all. Squares are added up in double, each block's in a fixed order, and the
// last block of the last launch adds the blocks' sums in a fixed order: the result depends on the
// list and the GPU's size alone. Reads every gradient once.
#include <type_traits>

#include "cuda/adam/adam.h"
#include "cuda/adam/adam_table.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kWarps = kAdamThreads / 32;

// A sum of squares, and whether all of what was squared was finite.
struct Sum {
  double squares;
  bool finite;
};

struct Shared {
  double squares[kWarps];
  int32_t finite[kWarps];
  int32_t flag;
};

// The sum over all threads of the block, in every thread; each takes part.
__device__ inline Sum block_sum(Sum sum, Shared* shared) {
  for (int bits = 16; bits > 0; bits /= 2)
    sum.squares += __shfl_xor_sync(0xffffffffu, sum.squares, bits);
  const bool finite = __all_sync(0xffffffffu, sum.finite) != 0;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x % 32 == 0) {
    shared->squares[warp] = sum.squares;
    shared->finite[warp] = finite;
  }
  __syncthreads();
  Sum all{0.0, true};
  for (int w = 0; w < kWarps; ++w) {
    all.squares += shared->squares[w];
    all.finite = all.finite && shared->finite[w] != 0;
  }
  __syncthreads();  // the caller may come again
  return all;
}

template <class Real>
__device__ inline void add(Sum& sum, Real g) {
  const double wide = static_cast<double>(g);
  sum.squares = fma(wide, wide, sum.squares);
  sum.finite = sum.finite && g - g == Real{0};
}

// The sum over all blocks of all launches, and what follows from it. One thread writes.
template <class Table>
__device__ inline void finish(const Table& table, const AdamNorm& norm, Shared* shared) {
  Sum own{0.0, true};
  for (uint32_t b = threadIdx.x; b < norm.all; b += kAdamThreads) {
    own.squares += norm.sums[b];
    own.finite = own.finite && norm.finite[b] != 0;
  }
  const Sum sum = block_sum(own, shared);
  if (threadIdx.x != 0) return;
  const double unscale =
      table.grad_scale == nullptr ? 1.0 : 1.0 / static_cast<double>(*table.grad_scale);
  AdamState& state = *table.state;
  state.squares = sum.squares * unscale * unscale;
  state.nonfinite = !sum.finite;
  state.norm = sqrt(state.squares + norm.other_squares);
  // As torch.nn.utils.clip_grad_norm_: a NaN or infinite norm reaches the gradients.
  constexpr double kClipEpsilon = 1e-6;
  const double factor = norm.max_norm / (state.norm + kClipEpsilon);
  state.factor = norm.max_norm < 0.0 || factor > 1.0 ? 1.0 : factor;
  state.skip = norm.skip_nonfinite && !(sum.finite && norm.others_finite);
  const bool left_out_anyway = table.found_inf != nullptr && *table.found_inf != 0.0f;
  if (state.skip != 0 && !left_out_anyway) ++state.skipped_steps;
}

template <AdamType kType, class Table>
__global__ void __launch_bounds__(kAdamThreads)
    adam_norm_kernel(const __grid_constant__ Table table, const AdamNorm norm) {
  using Types = AdamTypes<kType>;
  using Element = typename Types::Element;
  constexpr int kLanes = Types::kLanes;
  FC_DYNAMIC_SHARED(Shared, shared);
  const int32_t t = adam_tensor_of_block(table, blockIdx.x);
  const AdamEntry& entry = table.entries[t];
  const AdamChunk chunk =
      adam_chunk_of_block<kLanes>(entry, blockIdx.x - table.first_block[t], table.chunk);
  const auto* grads = static_cast<const Element*>(entry.grad) + chunk.begin;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  Sum sum{0.0, true};
  for (int32_t i = chunk.vector_begin + thread * kLanes; i < chunk.vector_end;
       i += kAdamThreads * kLanes) {
    const auto g = load_streaming(grads + i);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) add(sum, to_accumulate(g[lane]));
  }
  for (int32_t i = thread; i < chunk.vector_begin; i += kAdamThreads)
    add(sum, to_accumulate(grads[i]));
  for (int32_t i = chunk.vector_end + thread; i < chunk.size; i += kAdamThreads)
    add(sum, to_accumulate(grads[i]));
  const Sum block = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    norm.sums[norm.before + blockIdx.x] = block.squares;
    norm.finite[norm.before + blockIdx.x] = block.finite;
  }
  if (norm.all == 0) return;  // not the last launch
  if (adam_last_block(&table.state->norm_ticket, &shared->flag)) finish(table, norm, shared);
}

// Calls launch(kType as a constant, table, blocks) for every table of every type.
template <class Launch>
cudaError_t for_all_tables(const AdamStep& step, const Launch& launch) {
  const int64_t chunk = adam_chunk(adam_elements(step), step.multiprocessors);
  const auto of = [&](auto type) {
    return adam_for_tables<decltype(type)::value>(
        step, chunk,
        [&](const auto& table, uint32_t blocks) { return launch(type, table, blocks); });
  };
  using std::integral_constant;
  cudaError_t status = of(integral_constant<AdamType, AdamType::kFloat32>{});
  if (status == cudaSuccess) status = of(integral_constant<AdamType, AdamType::kBfloat16>{});
  if (status == cudaSuccess) status = of(integral_constant<AdamType, AdamType::kFloat64>{});
  return status;
}

// A launch has at least one block, which then adds up nothing.
uint32_t at_least_one(uint32_t blocks) {
  return blocks == 0 ? 1 : blocks;
}

struct Launches {
  int64_t count = 0;
  int64_t blocks = 0;
};

Launches count_launches(const AdamStep& step) {
  Launches launches;
  for_all_tables(step, [&](auto, const auto&, uint32_t blocks) {
    ++launches.count;
    launches.blocks += at_least_one(blocks);
    return cudaSuccess;
  });
  return launches;
}

}  // namespace

int64_t adam_norm_workspace_bytes(const AdamStep& step) {
  return count_launches(step).blocks * static_cast<int64_t>(sizeof(double) + sizeof(int32_t));
}

cudaError_t launch_adam_norm(const AdamStep& step, void* workspace, cudaStream_t stream) {
  const Launches launches = count_launches(step);
  if (launches.blocks > kMaxGridX) return cudaErrorInvalidValue;
  auto* sums = static_cast<double*>(workspace);
  AdamNorm norm{sums,
                reinterpret_cast<int32_t*>(sums + launches.blocks),
                0,
                0,
                step.max_norm,
                step.other_squares,
                step.others_finite,
                step.skip_nonfinite};
  int64_t number = 0;
  return for_all_tables(step, [&](auto type, const auto& table, uint32_t blocks) {
    using Table = std::decay_t<decltype(table)>;
    constexpr AdamType kType = decltype(type)::value;
    norm.all = ++number == launches.count ? static_cast<uint32_t>(launches.blocks) : 0;
    const cudaError_t status = FC_LAUNCH((adam_norm_kernel<kType, Table>), at_least_one(blocks),
                                         kAdamThreads, sizeof(Shared), stream, table, norm);
    norm.before += at_least_one(blocks);
    return status;
  });
}

}  // namespace fastconv::cuda
