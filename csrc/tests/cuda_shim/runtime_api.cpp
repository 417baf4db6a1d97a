// SPDX-License-Identifier: MIT
// The limits of the emulated device, and what its runtime refuses.
#include "tests/cuda_shim/runtime_api.h"

#include <cstring>
#include <map>

#include "tests/cuda_shim/emulator.h"

namespace {

constexpr size_t kSharedWithoutOptIn = 48 * 1024;

int64_t launches_until_failure = -1;

std::map<const void*, int>& opted_in() {
  static std::map<const void*, int> kernels;
  return kernels;
}

// Dynamic shared memory a block may have, by compute capability (CUDA C++ Programming Guide).
int max_shared_bytes() {
  switch (fastconv::cuda_shim::options().compute_capability) {
    case 75:
      return 64 * 1024;
    case 80:
    case 87:
      return 163 * 1024;
    case 86:
    case 89:
    case 120:
      return 99 * 1024;
    default:
      return 227 * 1024;
  }
}

bool valid(const cudaLaunchConfig_t& c, const void* kernel) {
  const uint64_t threads = uint64_t{c.block_size.x} * c.block_size.y * c.block_size.z;
  if (threads == 0 || threads > 1024 || c.block_size.z > 64) return false;
  if (c.grid_size.x == 0 || c.grid_size.y == 0 || c.grid_size.z == 0) return false;
  if (c.grid_size.x > 0x7fffffffu || c.grid_size.y > 65535 || c.grid_size.z > 65535) return false;
  if (c.dynamic_shared_bytes <= kSharedWithoutOptIn) return true;
  const auto found = opted_in().find(kernel);
  return found != opted_in().end() && c.dynamic_shared_bytes <= static_cast<size_t>(found->second);
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    default:
      return fastconv::cuda_shim::last_error();
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const fastconv::cuda_shim::Options& options = fastconv::cuda_shim::options();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = options.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = options.compute_capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = options.compute_capability % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = max_shared_bytes();
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || value > max_shared_bytes()) return cudaErrorInvalidValue;
  opted_in()[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}

namespace fastconv::cuda_shim {

int64_t most_blocks() {
  return options().most_blocks;
}

void fail_launch(int64_t number) {
  launches_until_failure = number;
}

cudaError_t start_grid(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*),
                       void* context) {
  if (launches_until_failure >= 0 && launches_until_failure-- == 0) return cudaErrorLaunchFailure;
  if (!valid(config, kernel)) return cudaErrorInvalidConfiguration;
  return run_grid(config, body, context);
}

}  // namespace fastconv::cuda_shim
