// SPDX-License-Identifier: MIT
#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Every task runs exactly once, whoever runs it.
void test_each_task_once() {
  for (int64_t tasks : {0, 1, 2, 3, 7, 64}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
    parallel_for(tasks, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
    for (const std::atomic<int>& count : runs) CHECK(count == 1);
  }
}

void test_one_task_stays_on_the_calling_thread() {
  std::thread::id runner;
  parallel_for(1, [&](int64_t) { runner = std::this_thread::get_id(); });
  CHECK(runner == std::this_thread::get_id());
}

void test_const_and_temporary_bodies() {
  std::atomic<int64_t> sum{0};
  const auto body = [&](int64_t task) { sum += task; };
  parallel_for(5, body);
  parallel_for(5, [&](int64_t task) { sum += 10 * task; });
  CHECK(sum == 110);
}

// Results of all tasks are visible to the caller afterwards, without further synchronisation.
void test_results_are_visible() {
  std::vector<int64_t> squares(1000);
  parallel_for(8, [&](int64_t task) {
    for (int64_t i = 125 * task; i < 125 * (task + 1); ++i) squares[static_cast<size_t>(i)] = i * i;
  });
  for (int64_t i = 0; i < 1000; ++i) CHECK(squares[static_cast<size_t>(i)] == i * i);
}

void test_all() {
  test_each_task_once();
  test_one_task_stays_on_the_calling_thread();
  test_const_and_temporary_bodies();
  test_results_are_visible();
}

void test_small_work_stays_serial() {
  testing::use_no_threads();
  CHECK(num_threads() == 1);
  CHECK(worthwhile_threads(int64_t{1} << 40, 0) == 1);
  testing::use_threads();
  CHECK(num_threads() == 3);
  CHECK(worthwhile_threads(0, 0) == 1);
  CHECK(worthwhile_threads(1000, 1000) == 1);
  CHECK(worthwhile_threads(int64_t{1} << 40, 0) == 3);
  CHECK(worthwhile_threads(0, int64_t{1} << 40) == 3);
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  fastconv::testing::use_no_threads();
  fastconv::cpu::test_all();
  fastconv::testing::use_threads();
  fastconv::cpu::test_all();
  fastconv::cpu::test_small_work_stays_serial();
  return fastconv::testing::report();
}
