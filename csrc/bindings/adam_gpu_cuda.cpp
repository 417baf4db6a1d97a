// SPDX-License-Identifier: MIT
#include <ATen/ops/zeros.h>

#include <cstring>

#include "bindings/adam_gpu.h"
#include "bindings/cuda_call.h"
#include "cuda/adam/adam.h"

namespace fastconv::bindings {
namespace {

constexpr const char* kOp = "Adam";

// One number where the kernels can read it, as float32; `kept` keeps a copy alive.
const float* number_on(const Tensor& tensor, c10::Device device, std::vector<Tensor>* kept) {
  if (!tensor.defined()) return nullptr;
  kept->push_back(tensor.detach().to(device, at::kFloat));
  return kept->back().const_data_ptr<float>();
}

double value_of(double number, const Tensor& tensor) {
  return tensor.defined() ? tensor.item<double>() : number;
}

cuda::AdamGroup group_of(const AdamOptions& o, c10::Device device) {
  cuda::AdamGroup group{};
  const Tensor& lr = o.lr_tensor;
  if (lr.defined() && lr.device() == device && lr.scalar_type() == at::kFloat)
    group.lr_pointer = lr.const_data_ptr<float>();
  else
    group.lr = value_of(o.lr, lr);
  group.beta1 = value_of(o.beta1, o.beta1_tensor);
  group.beta2 = value_of(o.beta2, o.beta2_tensor);
  group.eps = o.eps;
  group.weight_decay = o.weight_decay;
  group.decoupled_weight_decay = o.decoupled_weight_decay;
  group.maximize = o.maximize;
  return group;
}

// The launchers' view of a step, and what it points to.
struct Step {
  Step(AdamGpu& gpu, const std::vector<const AdamOptions*>& options,
       const AdamGpuGradients& gradients, const CudaCall& call) {
    for (size_t row = 0; row < gpu.table.size(); ++row) {
      const cpu::AdamTensor& t = gpu.table.tensor(row);
      if (!gpu.table.takes_part(row)) continue;
      tensors.push_back({t.param, t.grad, t.exp_avg, t.exp_avg_sq, t.max_exp_avg_sq,
                         gpu.table.slot(row).step.mutable_data_ptr<float>(), t.size, t.type,
                         static_cast<int32_t>(gpu.group_of_row[row])});
    }
    for (const AdamOptions* o : options) groups.push_back(group_of(*o, gpu.device));
    step = {tensors.data(),
            static_cast<int64_t>(tensors.size()),
            groups.data(),
            number_on(gradients.grad_scale, gpu.device, &kept),
            number_on(gradients.found_inf, gpu.device, &kept),
            gradients.max_norm,
            gradients.skip_nonfinite,
            gradients.other_squares,
            gradients.others_finite,
            gpu.table.overlapping(),
            static_cast<cuda::AdamState*>(gpu.state.mutable_data_ptr()),
            call.device().multiprocessors};
  }

  std::vector<cuda::AdamTensor> tensors;
  std::vector<cuda::AdamGroup> groups;
  std::vector<Tensor> kept;
  cuda::AdamStep step;
};

void make_state(AdamGpu& gpu) {
  if (!gpu.state.defined())
    gpu.state = at::zeros({static_cast<int64_t>(sizeof(cuda::AdamState))},
                          at::TensorOptions().dtype(at::kByte).device(gpu.device));
}

bool run(AdamGpu& gpu, const std::vector<const AdamOptions*>& groups,
         const AdamGpuGradients& gradients, bool update) {
  if (gpu.table.size() == 0) return false;
  CudaCall call(kOp, {{"param", gpu.table.slot(0).param}});
  make_state(gpu);
  const Step step(gpu, groups, gradients, call);
  if (step.step.count == 0) return false;
  if (!update || cuda::adam_needs_norm(step.step))
    call.check(cuda::launch_adam_norm(
        step.step, call.workspace(cuda::adam_norm_workspace_bytes(step.step)), call.stream()));
  if (!update) return true;
  call.check(cuda::launch_adam_update(step.step, call.stream()));
  gpu.table.stepped(gradients.grad_scale.defined());
  return true;
}

}  // namespace

bool adam_gpu_built(c10::Device device) {
  return device.is_cuda();
}

bool adam_gpu_step(AdamGpu& gpu, const std::vector<const AdamOptions*>& groups,
                   const AdamGpuGradients& gradients) {
  return run(gpu, groups, gradients, /*update=*/true);
}

bool adam_gpu_measure(AdamGpu& gpu, const std::vector<const AdamOptions*>& groups,
                      const AdamGpuGradients& gradients) {
  return run(gpu, groups, gradients, /*update=*/false);
}

AdamGpuNorm adam_gpu_read(const AdamGpu& gpu) {
  if (!gpu.state.defined()) return {};
  const Tensor bytes = gpu.state.cpu();
  cuda::AdamState state;
  std::memcpy(&state, bytes.const_data_ptr(), sizeof state);
  return {state.squares, state.nonfinite == 0, state.norm,
          state.factor,  state.skip != 0,      state.skipped_steps};
}

}  // namespace fastconv::bindings
