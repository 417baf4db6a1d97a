// SPDX-License-Identifier: MIT
// Keeps the object library of kernels non-empty where csrc/cuda holds no .cu file, and proves that
// the seam's headers compile together.
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"
