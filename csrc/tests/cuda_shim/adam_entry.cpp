// SPDX-License-Identifier: MIT
// Adam's launchers for Python. A tensor is a row of nine int64: param, grad, exp_avg, exp_avg_sq,
// max_exp_avg_sq, step (addresses), size, type, group; a group a row of seven doubles: lr, beta1,
// beta2, eps, weight_decay, decoupled, maximize, and an address of lr or zero.
#include <cstdint>
#include <vector>

#include "cuda/adam/adam.h"
#include "tests/cuda_shim/entry.h"

namespace {

using namespace fastconv;

struct Lists {
  std::vector<cuda::AdamTensor> tensors;
  std::vector<cuda::AdamGroup> groups;
};

Lists lists_of(const int64_t* tensors, int64_t count, const double* groups,
               const int64_t* lr_pointers, int64_t group_count) {
  Lists lists;
  const auto at = [](int64_t address) { return reinterpret_cast<void*>(address); };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* t = tensors + 9 * i;
    lists.tensors.push_back({at(t[0]), at(t[1]), at(t[2]), at(t[3]), at(t[4]),
                             static_cast<float*>(at(t[5])), t[6], static_cast<AdamType>(t[7]),
                             static_cast<int32_t>(t[8])});
  }
  for (int64_t i = 0; i < group_count; ++i) {
    const double* g = groups + 7 * i;
    lists.groups.push_back({static_cast<const float*>(at(lr_pointers[i])), g[0], g[1], g[2], g[3],
                            g[4], g[5] != 0.0, g[6] != 0.0});
  }
  return lists;
}

}  // namespace

// Elements per block.
FC_ENTRY int64_t fastconv_adam_chunk(int64_t elements, int64_t multiprocessors) {
  return cuda::adam_chunk(elements, static_cast<int32_t>(multiprocessors));
}

// A whole step. Returns the launchers' error; `workspace` has room for `workspace_bytes`.
FC_ENTRY int fastconv_adam_step(const int64_t* tensors, int64_t count, const double* groups,
                                const int64_t* lr_pointers, int64_t group_count,
                                const float* grad_scale, const float* found_inf, double max_norm,
                                int skip_nonfinite, double other_squares, int others_finite,
                                int ordered, void* state, void* workspace, int64_t workspace_bytes,
                                int64_t multiprocessors) {
  const Lists lists = lists_of(tensors, count, groups, lr_pointers, group_count);
  const cuda::AdamStep step{lists.tensors.data(),
                            count,
                            lists.groups.data(),
                            grad_scale,
                            found_inf,
                            max_norm,
                            skip_nonfinite != 0,
                            other_squares,
                            others_finite != 0,
                            ordered != 0,
                            static_cast<cuda::AdamState*>(state),
                            static_cast<int32_t>(multiprocessors)};
  if (cuda::adam_needs_norm(step)) {
    if (cuda::adam_norm_workspace_bytes(step) > workspace_bytes) return cudaErrorInvalidValue;
    const cudaError_t status = cuda::launch_adam_norm(step, workspace, nullptr);
    if (status != cudaSuccess) return status;
  }
  return cuda::launch_adam_update(step, nullptr);
}
