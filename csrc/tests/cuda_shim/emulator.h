// SPDX-License-Identifier: MIT
// The emulator as tests see it: how kernels are scheduled, what they did, why a launch failed.
//
// A launch runs every CUDA thread as a fiber of the calling thread. A fiber runs until it waits for
// others (barrier, warp collective) or ends; the schedule decides who goes on. A launch that breaks
// a rule of CUDA is given up where it stands and returns an error; last_error() says who and where.
#pragma once

#include <cstdint>
#include <string>

namespace fastconv::cuda_shim {

enum class Schedule : int {
  kAscending,      // threads by their number, blocks one after another
  kDescending,     // threads by falling number
  kWarpAhead,      // one warp (of changing number) always runs as far ahead of the others as it can
  kRandom,         // threads in random order, changing at memory accesses too
  kBlocksReversed  // several blocks at once, last block first, threads in random order
};
inline constexpr int kSchedules = 5;

// When the copies of cp.async happen: as they are issued, or as late as a wait allows.
enum class CopyAt : int { kIssue, kWait };

// How mma adds up: exactly and rounded once; or cut off as tensor cores do.
enum class MmaMode : int { kExact, kAmpere, kHopper };

struct Options {
  Schedule schedule = Schedule::kAscending;
  CopyAt copy_at = CopyAt::kWait;
  MmaMode mma = MmaMode::kExact;
  uint64_t seed = 0;
  int multiprocessors = 4;  // what cudaDeviceGetAttribute answers
  int compute_capability = 80;
  int64_t most_blocks = 2147483647;  // of a one-dimensional grid that grid_for plans
};

void set_options(const Options& options);
const Options& options();

// The launch of this number from now on (0: the next one) fails with cudaErrorLaunchFailure and
// does not run; none does if it is negative.
void fail_launch(int64_t number);

// What the kernels since reset_counts() did.
struct Counts {
  int64_t launches;
  int64_t blocks;
  int64_t barriers;  // of a block, each counted once
  int64_t mma;       // of a warp
  int64_t ldmatrix;  // of a warp
  int64_t async_copies;
  int64_t checked_accesses;  // vector accesses of cuda/common/vector.cuh
};
Counts& counts();
void reset_counts();

// Names of the kernels launched since reset_counts(), in order, separated by '|'.
const std::string& kernel_trace();

// Why the latest failed launch failed.
const char* last_error();

}  // namespace fastconv::cuda_shim
