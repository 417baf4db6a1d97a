// SPDX-License-Identifier: MIT
// Marks functions that CPU and CUDA kernels share.
#pragma once

#ifdef __CUDACC__
#define FASTCONV_HOST_DEVICE __host__ __device__
#else
#define FASTCONV_HOST_DEVICE
#endif
