// SPDX-License-Identifier: MIT
#include "bindings/cuda_call.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>

#include <string>

namespace fastconv::bindings {
namespace {

constexpr int kOldest = FASTCONV_CUDA_OLDEST;
constexpr const char* kBuiltFor = FASTCONV_CUDA_ARCHITECTURES;

int attribute(const char* op, cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&value, which, device);
  TORCH_CHECK(status == cudaSuccess, op, ": expected a working GPU as cuda:", device, ", got ",
              cudaGetErrorString(status));
  return value;
}

std::string gpu_name(int device) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return "an unknown GPU";
  return properties.name;
}

cuda::Device look_at(const char* op, int device) {
  const int capability = 10 * attribute(op, cudaDevAttrComputeCapabilityMajor, device) +
                         attribute(op, cudaDevAttrComputeCapabilityMinor, device);
  TORCH_CHECK_NOT_IMPLEMENTED(
      capability >= kOldest, op, ": ",
      cuda::unsupported_gpu(gpu_name(device), capability, kOldest, kBuiltFor));
  return {capability, attribute(op, cudaDevAttrMultiProcessorCount, device),
          attribute(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          attribute(op, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)};
}

// Looked at once per thread and GPU: no lock, and the runtime is not asked four times a call.
cuda::Device device_facts(const char* op, int device) {
  thread_local std::vector<std::optional<cuda::Device>> known;
  if (known.size() <= static_cast<size_t>(device)) known.resize(device + 1);
  if (!known[device].has_value()) known[device] = look_at(op, device);
  return *known[device];
}

// The GPU of the first argument, after checking that the others are there too.
c10::Device common_device(const char* op, std::initializer_list<CudaArgument> arguments) {
  const CudaArgument& first = *arguments.begin();
  const c10::Device device = first.tensor->device();
  for (const CudaArgument& argument : arguments)
    TORCH_CHECK_VALUE(argument.tensor == nullptr || !argument.tensor->defined() ||
                          argument.tensor->device() == device,
                      op, ": expected all tensors on one GPU, got ", first.name, " on ", device,
                      " and ", argument.name, " on ", argument.tensor->device());
  TORCH_CHECK_VALUE(device.is_cuda(), op, ": expected CUDA tensors, got ", first.name, " on ",
                    device);
  return device;
}

}  // namespace

CudaCall::CudaCall(const char* op, std::initializer_list<CudaArgument> arguments)
    : op_(op),
      guard_(common_device(op, arguments)),
      stream_(c10::cuda::getCurrentCUDAStream(guard_.current_device().index()).stream()),
      device_(device_facts(op, guard_.current_device().index())) {}

void* CudaCall::workspace(int64_t bytes) {
  if (bytes == 0) return nullptr;
  blocks_.push_back(c10::cuda::CUDACachingAllocator::get()->allocate(static_cast<size_t>(bytes)));
  return blocks_.back().get();
}

void CudaCall::check(cudaError_t status) const {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next unrelated check of the runtime reports it again
  TORCH_CHECK_NOT_IMPLEMENTED(
      status != cudaErrorNoKernelImageForDevice, op_, ": ",
      cuda::unsupported_gpu(gpu_name(guard_.current_device().index()), device_.compute_capability,
                            kOldest, kBuiltFor));
  TORCH_CHECK(false, op_, ": expected its CUDA kernel to start, got ", cudaGetErrorName(status),
              ": ", cudaGetErrorString(status));
}

}  // namespace fastconv::bindings
