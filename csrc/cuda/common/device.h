// SPDX-License-Identifier: MIT
// What a launcher may want to know about the GPU it launches on: passed in, so that the choice of
// an algorithm is a plain function that tests can ask about any GPU.
#pragma once

#include <cstdint>
#include <string>

namespace fastconv::cuda {

struct Device {
  int32_t compute_capability;    // 10 * major + minor: 75, 80, 86, 89, 90, 100, 120, ...
  int32_t multiprocessors;       // streaming multiprocessors
  int32_t block_shared_bytes;    // the most dynamic shared memory of a block, after opting in
  int32_t multiprocessor_bytes;  // shared memory of one multiprocessor
};

// The sentence for a GPU that the build has no kernels for: its name and capability, the oldest
// capability that would do, and all that there is code for, as "75 80 90".
inline std::string unsupported_gpu(const std::string& gpu, int32_t capability, int32_t oldest,
                                   const std::string& built_for) {
  const auto version = [](int32_t c) {
    return std::to_string(c / 10) + "." + std::to_string(c % 10);
  };
  return "expected a GPU of compute capability " + version(oldest) + " or newer, got " + gpu +
         " of " + version(capability) + "; this build of fastconv has kernels for sm_" + built_for;
}

}  // namespace fastconv::cuda
