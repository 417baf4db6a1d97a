// SPDX-License-Identifier: MIT
// conv2d for python_tests/test_cuda_shim_conv2d.py. What is not a tensor comes in one array:
//   [0, 16) the fields of Conv2dShape in their order; then Request's; then the strides of the
//   call's tensors in the order of its pointers, four numbers each, none for the bias.
#include "cuda/conv2d/conv2d.h"
#include "tests/cuda_shim/entry.h"
#include "tests/cuda_shim/guarded_memory.h"

namespace {

using namespace fastconv;
using namespace fastconv::cuda;

struct Request {
  Conv2dElement element;
  bool allow_tf32;
  int algorithm;  // -1: as planned
  int tile;       // -1: as planned
  int64_t splits;
  Activation activation;
  Conv2dPool pool;
  Device device;
};

class Numbers {
 public:
  explicit Numbers(const int64_t* values) : values_(values) {}
  int64_t next() { return *values_++; }
  Strides4 strides() {
    const int64_t* s = values_;
    values_ += 4;
    return {s[0], s[1], s[2], s[3]};
  }
  Conv2dShape shape() {
    const int64_t* s = values_;
    values_ += 16;
    return {s[0], s[1], s[2],  s[3],  s[4],  s[5],  s[6],  s[7],
            s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15]};
  }
  Request request() {
    Request r{};
    r.element = static_cast<Conv2dElement>(next());
    r.allow_tf32 = next() != 0;
    r.algorithm = static_cast<int>(next());
    r.tile = static_cast<int>(next());
    r.splits = next();
    r.activation = static_cast<Activation>(next());
    r.pool.kind = static_cast<BlockPool>(next());
    r.pool.height = next();
    r.pool.width = next();
    r.device = {static_cast<int32_t>(next()), static_cast<int32_t>(next()), 166912, 167936};
    return r;
  }

 private:
  const int64_t* values_;
};

// Fills in what every call has, and tells the test what is going to run.
template <typename Call, typename Plan, typename Planned>
void plan_call(Call& call, const Request& request, int64_t* plan, const Plan& plan_as,
               const Planned& planned) {
  call.element = request.element;
  call.allow_tf32 = request.allow_tf32;
  call.device = request.device;
  call.plan =
      request.algorithm < 0 ? planned() : plan_as(static_cast<Conv2dAlgorithm>(request.algorithm));
  plan[0] = static_cast<int64_t>(call.plan.algorithm);
  plan[1] = static_cast<int64_t>(call.plan.math);
  plan[2] = call.plan.tile;
  plan[3] = call.plan.splits;
  plan[4] = call.plan.workspace_bytes;
}

// Launches with a workspace between guard pages.
template <typename Call, typename Launch>
int run(Call& call, const Launch& launch) {
  call.workspace = call.plan.workspace_bytes == 0
                       ? nullptr
                       : cuda_shim::guarded_allocate(static_cast<size_t>(call.plan.workspace_bytes),
                                                     256, cuda_shim::Flush::kEnd, "workspace");
  const cudaError_t error = launch(call, nullptr);
  if (call.workspace != nullptr && !cuda_shim::guarded_free(call.workspace))
    return cudaErrorIllegalAddress;
  return error;
}

}  // namespace

FC_ENTRY int fastconv_conv2d_forward(const int64_t* values, int64_t* plan, const void* input,
                                     const void* weight, const void* bias, void* output,
                                     uint8_t* offsets, double negative_slope) {
  Numbers numbers(values);
  Conv2dForward call{};
  call.shape = numbers.shape();
  const Request request = numbers.request();
  call.input = input;
  call.input_strides = numbers.strides();
  call.weight = weight;
  call.weight_strides = numbers.strides();
  call.bias = bias;
  call.output = output;
  call.output_strides = numbers.strides();
  call.activation = request.activation;
  call.negative_slope = static_cast<float>(negative_slope);
  call.pool = request.pool;
  call.offsets = offsets;
  plan_call(
      call, request, plan,
      [&](Conv2dAlgorithm a) { return plan_conv2d_forward_as(call, a, request.tile); },
      [&] { return plan_conv2d_forward(call); });
  return run(call, launch_conv2d_forward);
}

FC_ENTRY int fastconv_conv2d_grad_input(const int64_t* values, int64_t* plan,
                                        const void* grad_output, const void* weight,
                                        void* grad_input) {
  Numbers numbers(values);
  Conv2dGradInput call{};
  call.shape = numbers.shape();
  const Request request = numbers.request();
  call.grad_output = grad_output;
  call.grad_output_strides = numbers.strides();
  call.weight = weight;
  call.weight_strides = numbers.strides();
  call.grad_input = grad_input;
  call.grad_input_strides = numbers.strides();
  plan_call(
      call, request, plan,
      [&](Conv2dAlgorithm a) { return plan_conv2d_grad_input_as(call, a, request.tile); },
      [&] { return plan_conv2d_grad_input(call); });
  return run(call, launch_conv2d_grad_input);
}

FC_ENTRY int fastconv_conv2d_grad_weight(const int64_t* values, int64_t* plan,
                                         const void* grad_output, const void* input,
                                         void* grad_weight, void* grad_bias) {
  Numbers numbers(values);
  Conv2dGradWeight call{};
  call.shape = numbers.shape();
  const Request request = numbers.request();
  call.grad_output = grad_output;
  call.grad_output_strides = numbers.strides();
  call.input = input;
  call.input_strides = numbers.strides();
  call.grad_weight = grad_weight;
  call.grad_weight_strides = numbers.strides();
  call.grad_bias = grad_bias;
  plan_call(
      call, request, plan,
      [&](Conv2dAlgorithm a) {
        return plan_conv2d_grad_weight_as(call, a, request.tile, request.splits);
      },
      [&] { return plan_conv2d_grad_weight(call); });
  return run(call, launch_conv2d_grad_weight);
}
