// SPDX-License-Identifier: MIT
// The arithmetic limit of this machine, measured: what "share of peak" means in the benchmarks.
#pragma once

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// GFLOP/s of float32 multiply-adds that touch nothing but registers, on num_threads() threads at
// once: the best of a few rounds, some 20 ms in all. Precondition: isa_available(isa).
double measure_fma_peak(Isa isa);

}  // namespace fastconv::cpu
