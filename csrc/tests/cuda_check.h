// SPDX-License-Identifier: MIT
// What tests of CUDA kernels need beside check.h: guarded memory as typed arrays, every schedule.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "check.h"
#include "tests/cuda_shim/emulator.h"
#include "tests/cuda_shim/guarded_memory.h"
#include "tests/cuda_shim/runtime_api.h"

namespace fastconv::testing {

// `count` poisoned values with unmapped memory at one end. Leaving its scope checks the gap beside.
template <typename T>
class Device {
 public:
  Device(const char* name, int64_t count, cuda_shim::Flush flush = cuda_shim::Flush::kEnd,
         size_t alignment = alignof(T))
      : count_(count),
        data_(static_cast<T*>(cuda_shim::guarded_allocate(sizeof(T) * static_cast<size_t>(count),
                                                          alignment, flush, name))) {}
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { CHECK(cuda_shim::guarded_free(data_) == !damaged_); }
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return count_; }
  // The test expects that somebody wrote into the gap beside the data.
  void expect_damage() { damaged_ = true; }

 private:
  int64_t count_;
  T* data_;
  bool damaged_ = false;
};

// ThreadSanitizer is slow to make threads, and finds two accesses without a barrier between them
// whichever came first: one schedule, that of several blocks at once, shows it what all five would.
// Late copies, because those touch their destination twice, at the issue and at the wait.
#ifdef __SANITIZE_THREAD__
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// Calls body() under every schedule, cp.async late in one, early in the next. With early copies
// grids have two blocks at most, so that kernels which loop over a larger problem do so.
template <class Body>
void for_each_schedule(const Body& body) {
  for (int s = kThreadSanitizer ? cuda_shim::kSchedules - 1 : 0; s < cuda_shim::kSchedules; ++s) {
    cuda_shim::Options options;
    options.schedule = static_cast<cuda_shim::Schedule>(s);
    options.copy_at = s % 2 == 0 ? cuda_shim::CopyAt::kWait : cuda_shim::CopyAt::kIssue;
    if (options.copy_at == cuda_shim::CopyAt::kIssue) options.most_blocks = 2;
    options.seed = static_cast<uint64_t>(s) + 7;
    cuda_shim::set_options(options);
    body();
  }
  cuda_shim::set_options({});
}

// Calls call(), a launcher of one kernel or more, with each of its kernels refused in turn: true if
// it returns that error every time and launches nothing after it.
template <class Call>
bool errors_end_the_call(const Call& call) {
  cuda_shim::reset_counts();
  if (call() != cudaSuccess) return false;
  const int64_t launches = cuda_shim::counts().launches;
  bool right = launches > 0;
  for (int64_t refused = 0; refused < launches; ++refused) {
    cuda_shim::reset_counts();
    cuda_shim::fail_launch(refused);
    right &= call() == cudaErrorLaunchFailure && cuda_shim::counts().launches == refused;
  }
  cuda_shim::fail_launch(-1);
  return right;
}

// True when the latest failed launch says so; prints what it says otherwise.
inline bool error_has(const char* text) {
  const bool found = std::strstr(cuda_shim::last_error(), text) != nullptr;
  if (!found) std::printf("last error: %s\n", cuda_shim::last_error());
  return found;
}

}  // namespace fastconv::testing
