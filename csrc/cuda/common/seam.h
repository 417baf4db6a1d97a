// SPDX-License-Identifier: MIT
// The two compilers of csrc/cuda: nvcc for the GPU, and g++ against the emulator of
// csrc/tests/cuda_shim, which defines FASTCONV_CUDA_SHIM. This file holds what the other headers of
// this folder need to serve both; kernels need none of it.
#pragma once

#ifdef FASTCONV_CUDA_SHIM
#include <source_location>

// Last parameter of a device function that the emulator checks: the line of the kernel that called.
#define FC_WHERE , std::source_location where = std::source_location::current()
#define FC_WHERE_ONLY std::source_location where = std::source_location::current()
#define FC_PASS_WHERE , where
// What the emulator calls the next launch in its messages and its trace.
#define FC_NOTE_KERNEL(kernel) ::fastconv::cuda_shim::note_kernel(#kernel)
#define FC_CHECK_ALIGNED(pointer, bytes) \
  ::fastconv::cuda_shim::check_aligned((pointer), (bytes), where)
// The most blocks that grid_for asks for: few in some tests, so that the loops of kernels turn.
#define FC_MOST_BLOCKS ::fastconv::cuda_shim::most_blocks()
#else
#define FC_WHERE
#define FC_WHERE_ONLY
#define FC_PASS_WHERE
#define FC_NOTE_KERNEL(kernel) static_cast<void>(0)
#define FC_CHECK_ALIGNED(pointer, bytes)
#define FC_MOST_BLOCKS ::fastconv::cuda::kMaxGridX
#endif
