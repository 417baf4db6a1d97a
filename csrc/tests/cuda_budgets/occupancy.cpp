// SPDX-License-Identifier: MIT
// Reads lines of four numbers - architecture (80, 90, ...), registers of a thread, bytes of shared
// memory, threads of a block - and prints how many such blocks fit a multiprocessor, by the
// occupancy calculator of CUDA's headers. The limits of the architectures are those of the CUDA
// programming guide, section Compute Capabilities.
#include <cuda_occupancy.h>

#include <cstdio>

namespace {

struct Limits {
  int architecture;
  int threads;             // of a multiprocessor
  int shared_bytes;        // the same
  int block_shared_bytes;  // of a block, after opting in
};

constexpr Limits kLimits[] = {
    {75, 1024, 65536, 65536},    {80, 2048, 167936, 166912}, {86, 1536, 102400, 101376},
    {89, 1536, 102400, 101376},  {90, 2048, 233472, 232448}, {100, 2048, 233472, 232448},
    {120, 1536, 102400, 101376},
};

int blocks_of(int architecture, int registers, int shared, int threads) {
  for (const Limits& l : kLimits) {
    if (l.architecture != architecture) continue;
    cudaOccDeviceProp device;
    device.computeMajor = architecture / 10;
    device.computeMinor = architecture % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = l.threads;
    device.regsPerBlock = 65536;
    device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 49152;
    device.sharedMemPerMultiprocessor = static_cast<size_t>(l.shared_bytes);
    device.numSms = 1;
    device.sharedMemPerBlockOptin = static_cast<size_t>(l.block_shared_bytes);
    device.reservedSharedMemPerBlock = architecture >= 80 ? 1024 : 0;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = threads;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = static_cast<size_t>(shared);
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = static_cast<size_t>(l.block_shared_bytes - shared);
    kernel.numBlockBarriers = 1;
    const cudaOccDeviceState state;
    cudaOccResult result;
    const cudaOccError error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0);
    return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1;
  }
  return -1;
}

}  // namespace

int main() {
  int architecture, registers, shared, threads;
  while (std::scanf("%d %d %d %d", &architecture, &registers, &shared, &threads) == 4)
    std::printf("%d\n", blocks_of(architecture, registers, shared, threads == 0 ? 1024 : threads));
}
