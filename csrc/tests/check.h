// SPDX-License-Identifier: MIT
// The whole test framework: CHECK counts failures and prints the first few, report() makes the exit
// status. Also what every kernel test needs: reproducible numbers, guarded memory, threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::testing {

struct Tally {
  int64_t checks = 0;
  int64_t failures = 0;
};

inline Tally& tally() {
  static Tally instance;
  return instance;
}

inline void check(bool holds, const char* text, const char* file, int line,
                  const std::string& context) {
  constexpr int64_t kMostPrinted = 20;
  ++tally().checks;
  if (holds || ++tally().failures > kMostPrinted) return;
  std::printf("%s:%d: CHECK(%s) failed %s\n", file, line, text, context.c_str());
}

#define CHECK(condition) ::fastconv::testing::check((condition), #condition, __FILE__, __LINE__, "")
#define CHECK_WITH(condition, context) \
  ::fastconv::testing::check((condition), #condition, __FILE__, __LINE__, (context))

// The last line of every main().
inline int report() {
  std::printf("%lld checks, %lld failures\n", static_cast<long long>(tally().checks),
              static_cast<long long>(tally().failures));
  return tally().failures == 0 && tally().checks > 0 ? 0 : 1;
}

// Calls body(isa) for every instruction set this machine has, each one forced.
inline void for_each_isa(const std::function<void(cpu::Isa)>& body) {
  static bool told = false;
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const auto isa = static_cast<cpu::Isa>(i);
    if (!cpu::isa_available(isa)) {
      if (!told) std::printf("not tested, this machine lacks it: %s\n", cpu::isa_name(isa));
      continue;
    }
    cpu::force_isa(isa);
    body(isa);
  }
  told = true;
  cpu::clear_forced_isa();
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Exactly `size` floats on the heap, so that AddressSanitizer sees the first one outside; they
// start as NaN, so that a kernel which reads memory it has not written shows.
class Floats {
 public:
  explicit Floats(int64_t size, float value = kNan)
      : size_(size), data_(new float[static_cast<size_t>(size)]) {
    for (int64_t i = 0; i < size; ++i) data_[i] = value;
  }
  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  float& operator[](int64_t i) { return data_[i]; }
  float operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t size_;
  std::unique_ptr<float[]> data_;
};

// Whole numbers in [-4, 4]: sums of their products are exact in float32, whatever the order.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  float whole() { return static_cast<float>(between(-4, 4)); }
  float real() { return std::normal_distribution<float>()(engine_); }

 private:
  std::mt19937_64 engine_;
};

// Runs tasks on three std::threads: what the sanitizers see is a pool nothing is known about.
inline void use_threads() {
  static constexpr int64_t kThreads = 3;
  cpu::set_thread_backend({[] { return kThreads; },
                           [](int64_t tasks, void* context, void (*body)(void*, int64_t)) {
                             std::vector<std::thread> threads;
                             for (int64_t t = 0; t < kThreads; ++t)
                               threads.emplace_back([=] {
                                 for (int64_t task = t; task < tasks; task += kThreads)
                                   body(context, task);
                               });
                             for (std::thread& thread : threads) thread.join();
                           }});
}

inline void use_no_threads() {
  cpu::set_thread_backend({nullptr, nullptr});
}

}  // namespace fastconv::testing
