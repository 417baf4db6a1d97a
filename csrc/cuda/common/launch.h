// SPDX-License-Identifier: MIT
// The only way a kernel is launched, and the only shared memory a kernel has. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/common/seam.h"

// FC_LAUNCH(kernel, grid, block, dynamic_shared_bytes, stream, arguments...): a cudaError_t. Grid
// and block convert to dim3. Arguments convert to the kernel's parameter types. A grid without
// blocks is cudaSuccess and no launch. A template with commas in its name goes in parentheses.
#define FC_LAUNCH(kernel, grid, block, dynamic_shared_bytes, stream, ...)                      \
  (FC_NOTE_KERNEL(kernel), ::fastconv::cuda::launch(kernel, grid, block, dynamic_shared_bytes, \
                                                    stream __VA_OPT__(, ) __VA_ARGS__))

// Declares `T* const name`: the dynamic shared memory of the block, aligned to 128 bytes.
#ifdef FASTCONV_CUDA_SHIM
#define FC_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::fastconv::cuda_shim::dynamic_shared())
#else
#define FC_DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(128) unsigned char fastconv_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(fastconv_dynamic_shared)
#endif

namespace fastconv::cuda {

inline constexpr size_t kSharedWithoutOptIn = 48 * 1024;
inline constexpr int64_t kMaxGridX = 2147483647;

// Blocks of a one-dimensional grid whose kernel loops over `items` in steps of the whole grid,
// `per_block` at a time: enough for one pass, within the limit of a grid.
inline unsigned grid_for(int64_t items, int64_t per_block) {
  const int64_t blocks = items / per_block + (items % per_block != 0);
  const int64_t most = FC_MOST_BLOCKS;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// Blocks for a kernel that does not loop. More than a grid may have stay more than that: the launch
// is refused, rather than done in part.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = items / per_block + (items % per_block != 0);
  return static_cast<unsigned>(blocks < UINT32_MAX ? blocks : UINT32_MAX);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t dynamic_shared_bytes, cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (dynamic_shared_bytes > kSharedWithoutOptIn) {
    const cudaError_t opted_in = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                      static_cast<int>(dynamic_shared_bytes));
    if (opted_in != cudaSuccess) return opted_in;
  }
  // By position: the emulator's struct of the same layout cannot name members like built-in
  // variables.
  const cudaLaunchConfig_t config = {grid, block, dynamic_shared_bytes, stream, nullptr, 0};
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace fastconv::cuda
