// SPDX-License-Identifier: MIT
// Shuffles, votes and atomics as the emulator executes them, and what it says of threads that do
// not meet as they should: the report names the line.
#include <string>

#include "cuda/common/launch.h"
#include "cuda_check.h"

namespace fastconv::testing {
namespace {

enum Built : int { kBroadcast, kXor, kDown, kUp, kBallot, kAny, kAll };

__global__ void warp_kernel(int* output, Built built, int argument, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  constexpr unsigned kAllLanes = 0xffffffffu;
  const int value = 100 + lane;
  int result = 0;
  if (built == kBroadcast) result = __shfl_sync(kAllLanes, value, argument, width);
  if (built == kXor) result = __shfl_xor_sync(kAllLanes, value, argument, width);
  if (built == kDown) result = __shfl_down_sync(kAllLanes, value, argument, width);
  if (built == kUp) result = __shfl_up_sync(kAllLanes, value, argument, width);
  if (built == kBallot)
    result = static_cast<int>(__ballot_sync(kAllLanes, lane % argument == 0 ? 4 : 0));
  if (built == kAny) result = __any_sync(kAllLanes, lane == argument);
  if (built == kAll) result = __all_sync(kAllLanes, lane != argument);
  output[lane] = result;
}

void test_shuffles_and_votes() {
  Device<int> output("output", 32);
  const auto run = [&](Built built, int argument, int width = 32) {
    CHECK(FC_LAUNCH(warp_kernel, 1, 32, 0, nullptr, output.data(), built, argument, width) ==
          cudaSuccess);
  };
  for_each_schedule([&] {
    for (const int width : {32, 8}) {
      for (const int argument : {1, 3, 4}) {
        run(kBroadcast, argument, width);
        for (int l = 0; l < 32; ++l) CHECK(output[l] == 100 + l / width * width + argument);
        run(kXor, argument, width);
        for (int l = 0; l < 32; ++l) CHECK(output[l] == 100 + (l ^ argument));
        run(kDown, argument, width);
        for (int l = 0; l < 32; ++l)
          CHECK(output[l] == 100 + (l % width + argument < width ? l + argument : l));
        run(kUp, argument, width);
        for (int l = 0; l < 32; ++l)
          CHECK(output[l] == 100 + (l % width >= argument ? l - argument : l));
      }
    }
    run(kXor, 8, 8);  // a later segment cannot be read, an earlier one can
    for (int l = 0; l < 32; ++l) CHECK(output[l] == 100 + (l & ~8));
    run(kBallot, 3);
    for (int l = 0; l < 32; ++l) CHECK(output[l] == 0x49249249);
    for (const int special : {5, 40}) {
      run(kAny, special);
      CHECK(output[7] == (special < 32));
      run(kAll, special);
      CHECK(output[7] == (special >= 32));
    }
  });
}

__global__ void atomics_kernel(unsigned* turns, long long* total, unsigned* seen) {
  seen[threadIdx.x] = atomicInc(turns, 4);
  atomicAdd(reinterpret_cast<unsigned long long*>(total), 1ull << 33);
}

void test_atomics() {
  for_each_schedule([] {
    constexpr int kThreads = 64;
    Device<unsigned> turns("turns", 1), seen("seen", kThreads);
    Device<long long> total("total", 1);
    turns[0] = 0;
    total[0] = 0;
    CHECK(FC_LAUNCH(atomics_kernel, 1, kThreads, 0, nullptr, turns.data(), total.data(),
                    seen.data()) == cudaSuccess);
    int counts[5] = {};
    for (int t = 0; t < kThreads; ++t) ++counts[seen[t] < 5 ? seen[t] : 0];
    CHECK(counts[0] == 13 && counts[3] == 13 && counts[4] == 12);  // 0 to 4, round and round
    CHECK(turns[0] == kThreads % 5);
    CHECK(total[0] == kThreads * (1ll << 33));
  });
}

// --- Who is reported, and the line --------------------------------------------------------------

constexpr int kShuffleLine = __LINE__ + 4;
__global__ void lanes_leave_kernel(int* output, int leaving) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < leaving) return;
  output[lane] = __shfl_xor_sync(0xffffffffu, lane, 1);
}

__global__ void two_masks_kernel(int* output) {
  const int lane = static_cast<int>(threadIdx.x);
  output[lane] = __shfl_xor_sync(lane < 16 ? 0xffffffffu : 0xfffffffeu, lane, 1);
}

constexpr int kBarrierLine = __LINE__ + 3;
__global__ void threads_leave_kernel(int leaving) {
  if (static_cast<int>(threadIdx.x) < leaving) return;
  __syncthreads();
}

void test_lines_are_named() {
  const auto at = [](int line) { return "test_cuda_warp.cpp:" + std::to_string(line); };
  Device<int> output("output", 32);
  for_each_schedule([&] {
    const auto run = [&](int threads, int leaving) {
      return FC_LAUNCH(lanes_leave_kernel, 1, threads, 0, nullptr, output.data(), leaving);
    };
    CHECK(run(32, 0) == cudaSuccess);
    CHECK(run(32, 3) == cudaErrorLaunchFailure);
    CHECK(error_has(at(kShuffleLine).c_str()));
    CHECK(run(16, 0) == cudaErrorLaunchFailure);
    CHECK(error_has("names lane 16, which the block does not have"));
    CHECK(error_has(at(kShuffleLine).c_str()));
    CHECK(FC_LAUNCH(threads_leave_kernel, 1, 64, 0, nullptr, 0) == cudaSuccess);
    CHECK(FC_LAUNCH(threads_leave_kernel, 1, 64, 0, nullptr, 5) == cudaErrorLaunchFailure);
    CHECK(error_has(at(kBarrierLine).c_str()));
    CHECK(error_has("threads_leave_kernel, block (0, 0, 0)"));
    CHECK(FC_LAUNCH(two_masks_kernel, 1, 32, 0, nullptr, output.data()) == cudaErrorLaunchFailure);
    CHECK(error_has("meets lane"));
  });
  // With ascending threads those that leave have left when the first of the others arrives.
  CHECK(FC_LAUNCH(lanes_leave_kernel, 1, 32, 0, nullptr, output.data(), 3) ==
        cudaErrorLaunchFailure);
  CHECK(error_has("mask 0xffffffff names lane 0, which has ended"));
  CHECK(FC_LAUNCH(threads_leave_kernel, 1, 64, 0, nullptr, 5) == cudaErrorLaunchFailure);
  CHECK(error_has("barrier after 5 threads of the block have ended"));
}

}  // namespace
}  // namespace fastconv::testing

int main() {
  using namespace fastconv::testing;
  test_shuffles_and_votes();
  test_atomics();
  test_lines_are_named();
  return report();
}
