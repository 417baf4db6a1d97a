// SPDX-License-Identifier: MIT
// Stride phases: the inputs whose position plus padding leaves the same remainder modulo the stride
// are reached by the same kernel positions. The input gradient is computed phase by phase.
#pragma once

#include <cstdint>
#include <vector>

namespace fastconv::cpu {

// The inputs of one phase along one dimension: positions first, first + stride, ...
struct Phase {
  int64_t first;
  int64_t count;
};

// One kernel position that reaches a phase: output position = phase index + offset.
struct PhaseTap {
  int64_t kernel_index;
  int64_t offset;
};

// Phases that hold inputs; phase p starts with input p.
inline int64_t phase_count(int64_t stride, int64_t size) {
  return stride < size ? stride : size;
}

inline Phase input_phase(int64_t phase, int64_t stride, int64_t size) {
  return {phase, (size - phase - 1) / stride + 1};
}

inline std::vector<PhaseTap> phase_taps(int64_t first, int64_t stride, int64_t padding,
                                        int64_t dilation, int64_t kernel) {
  std::vector<PhaseTap> taps;
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t numerator = first + padding - k * dilation;
    if (numerator % stride == 0) taps.push_back({k, numerator / stride});
  }
  return taps;
}

// Whether some kernel position reaches every phase.
inline bool all_phases_reached(int64_t stride, int64_t size, int64_t padding, int64_t dilation,
                               int64_t kernel) {
  for (int64_t first = 0; first < phase_count(stride, size); ++first)
    if (phase_taps(first, stride, padding, dilation, kernel).empty()) return false;
  return true;
}

}  // namespace fastconv::cpu
