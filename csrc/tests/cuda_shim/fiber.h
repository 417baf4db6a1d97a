// SPDX-License-Identifier: MIT
// Fibers: functions with a stack of their own that the scheduler resumes and that suspend
// themselves. One operating-system thread; sanitizers are told of every switch.
#pragma once

#include <cstddef>

namespace fastconv::cuda_shim {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Prepares body(argument) to run at the next resume(); forgets what ran before. body must not
  // return: its last act is suspend().
  void start(void (*body)(void*), void* argument);
  // Called by the scheduler: runs until the fiber suspends.
  void resume();
  // Called by the running fiber: back to the resume() that runs it.
  void suspend();
  // Called by the scheduler when the body will not be resumed again. `ended`: it came to its end.
  void stop(bool ended);
  // No fiber that was stopped before is unordered with one that starts from now on.
  static void order_stopped_before_started();

  // Makes the thread go on in `landing` on a stack of its own when a signal handler with this
  // context returns.
  static void divert_signal(void* signal_context, void (*landing)());

 private:
  void make_stack();
  void free_stack();

  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* stack_ = nullptr;  // with an unmapped page below
  void* saved_ = nullptr;  // stack pointer while suspended
  void* scheduler_saved_ = nullptr;
  void* sanitizer_fiber_ = nullptr;
  void* scheduler_sanitizer_fiber_ = nullptr;
};

}  // namespace fastconv::cuda_shim
