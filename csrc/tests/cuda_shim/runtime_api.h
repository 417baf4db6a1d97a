// SPDX-License-Identifier: MIT
// The functions of the CUDA runtime that launchers call, on the emulated device. Launches run to
// their end before they return; streams are ignored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "tests/cuda_shim/device_types.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;

// The values are CUDA's.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorIllegalAddress = 700,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

struct cudaLaunchConfig_t {
  dim3 grid_size;
  dim3 block_size;
  size_t dynamic_shared_bytes;
  cudaStream_t stream;
  const void* attributes;
  unsigned attribute_count;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream);

namespace fastconv::cuda_shim {

// The name that error messages and kernel_trace() give the next launch. `text` is a literal.
void note_kernel(const char* text);

// Options::most_blocks, for launchers.
int64_t most_blocks();

// Runs body(context) once per CUDA thread of the grid.
cudaError_t run_grid(const cudaLaunchConfig_t& config, void (*body)(void*), void* context);

// The same for a configuration that the device would accept; an error for others.
cudaError_t start_grid(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*),
                       void* context);

}  // namespace fastconv::cuda_shim

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  // What a kernel is given is copied to the device bit by bit, 32 KB at most.
  static_assert(
      ((!std::is_reference_v<Parameters> && std::is_trivially_copyable_v<Parameters>) && ...));
  static_assert((sizeof(Parameters) + ... + 0) <= 32764);
  const std::tuple<Parameters...> copies(arguments...);
  auto body = [&] { std::apply(kernel, copies); };
  using Body = decltype(body);
  return fastconv::cuda_shim::start_grid(
      *config, reinterpret_cast<const void*>(kernel),
      [](void* context) { (*static_cast<Body*>(context))(); }, &body);
}
