// SPDX-License-Identifier: MIT
// Stands in for CUDA's cuda_runtime.h when g++ compiles a .cu file for the emulator: the language's
// keywords, built-in types and variables, and the few functions of the runtime that launchers use.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

#include "tests/cuda_shim/device.h"
#include "tests/cuda_shim/device_math.h"
#include "tests/cuda_shim/runtime_api.h"
