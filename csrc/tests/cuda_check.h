// SPDX-License-Identifier: MIT
// What tests of CUDA kernels need beside check.h: guarded memory as typed arrays, every schedule.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "check.h"
#include "tests/cuda_shim/emulator.h"
#include "tests/cuda_shim/guarded_memory.h"

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

// ThreadSanitizer sees a race whatever the order, and is slow to make threads: the first schedule
// and the one of several blocks will do.
#ifdef __SANITIZE_THREAD__
inline constexpr int kScheduleStep = cuda_shim::kSchedules - 1;
#else
inline constexpr int kScheduleStep = 1;
#endif

// Calls body() under every schedule, cp.async early in one, late in the next.
template <class Body>
void for_each_schedule(const Body& body) {
  for (int s = 0; s < cuda_shim::kSchedules; s += kScheduleStep) {
    cuda_shim::Options options;
    options.schedule = static_cast<cuda_shim::Schedule>(s);
    options.copy_at = s % 2 == 0 && s != 4 ? cuda_shim::CopyAt::kWait : cuda_shim::CopyAt::kIssue;
    options.seed = static_cast<uint64_t>(s) + 7;
    cuda_shim::set_options(options);
    body();
  }
  cuda_shim::set_options({});
}

// True when the latest failed launch says so; prints what it says otherwise.
inline bool error_has(const char* text) {
  const bool found = std::strstr(cuda_shim::last_error(), text) != nullptr;
  if (!found) std::printf("last error: %s\n", cuda_shim::last_error());
  return found;
}

}  // namespace fastconv::testing
