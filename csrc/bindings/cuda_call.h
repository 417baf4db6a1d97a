// SPDX-License-Identifier: MIT
// What every CUDA binding does around a launch: one device for all tensors, torch's current stream,
// working memory from torch's allocator, and errors that name the operator. CUDA builds only.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <initializer_list>
#include <vector>

#include "bindings/ops.h"
#include "cuda/common/device.h"

namespace fastconv::bindings {

// A tensor of a call and what messages call it; an absent or undefined one is skipped.
struct CudaArgument {
  CudaArgument(const char* name, const Tensor& tensor) : name(name), tensor(&tensor) {}
  CudaArgument(const char* name, const OptionalTensor& tensor)
      : name(name), tensor(tensor.has_value() ? &*tensor : nullptr) {}

  const char* name;
  const Tensor* tensor;
};

// Makes the tensors' GPU the current one until it goes out of scope, and keeps the working memory
// of the call until then; torch hands that out again only to later work on the same stream.
//
//   CudaCall call("conv2d", {{"input", input}, {"weight", weight}, {"bias", bias}});
//   args.workspace = call.workspace(cuda::conv2d_forward_workspace_bytes(args));
//   call.check(cuda::launch_conv2d_forward(args, call.stream()));
class CudaCall {
 public:
  // Throws unless all arguments are on one GPU, which the kernels of this build can run on.
  // Precondition: the first argument is defined. `op` must outlive the object.
  CudaCall(const char* op, std::initializer_list<CudaArgument> arguments);

  cudaStream_t stream() const { return stream_; }

  const cuda::Device& device() const { return device_; }

  // Uninitialised memory on the GPU, aligned to 256 bytes; nullptr for none. Not host memory.
  void* workspace(int64_t bytes);

  // Throws "op: ..." unless `status` is cudaSuccess.
  void check(cudaError_t status) const;

 private:
  const char* op_;
  c10::cuda::CUDAGuard guard_;
  cudaStream_t stream_;
  cuda::Device device_;
  std::vector<c10::DataPtr> blocks_;
};

}  // namespace fastconv::bindings
