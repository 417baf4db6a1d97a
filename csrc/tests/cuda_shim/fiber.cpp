// SPDX-License-Identifier: MIT
// The switch for x86-64 (System V ABI): registers that a callee must keep go on the stack, the
// stack pointer is exchanged. This file and the emulator's other .cpp files are never instrumented
// by ThreadSanitizer: their memory is shared by all fibers without locks.
#include "tests/cuda_shim/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FASTCONV_SHIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#ifndef __x86_64__
#error "the CUDA emulator switches fibers on x86-64 only"
#endif

extern "C" void fastconv_shim_switch(void** save, void* load);
asm(R"(
.text
.hidden fastconv_shim_switch
.globl fastconv_shim_switch
.type fastconv_shim_switch, @function
fastconv_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastconv_shim_switch, .-fastconv_shim_switch
)");

namespace fastconv::cuda_shim {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kGuardBytes = 4096;

// What the next fiber to run for the first time is to do.
void (*starting_body)(void*);
void* starting_argument;

#ifdef __SANITIZE_ADDRESS__
const void* scheduler_stack;
size_t scheduler_stack_bytes;
#endif

void entry() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  starting_body(starting_argument);
  std::abort();
}

// A stack on which `function` starts when its last word is popped.
void* prepared_stack(void* stack, void (*function)()) {
  auto* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(stack) + kStackBytes);
  *--top = 0;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<uintptr_t>(function);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = 0;
  return top;
}

}  // namespace

#ifdef FASTCONV_SHIM_TSAN
// ThreadSanitizer takes longer to make and end a thread than most kernels run, so threads whose
// launch is over serve the next one, each with the stack that is its own. Not within a launch: the
// blocks that a thread serves are ordered. A limit, because its clocks grow with the threads.
struct Kept {
  void* stack;
  void* sanitizer_fiber;
};
constexpr int kMostKept = 2048;
Kept kept[kMostKept];  // those to be used again first, then those of the launch that runs
int kept_ready = 0;
int kept_count = 0;
#endif

Fiber::~Fiber() {
  stop(false);
  free_stack();
}

void Fiber::make_stack() {
  void* mapped = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED || mprotect(mapped, kGuardBytes, PROT_NONE) != 0) std::abort();
  stack_ = static_cast<char*>(mapped) + kGuardBytes;
}

void Fiber::free_stack() {
  if (stack_ != nullptr)
    munmap(static_cast<char*>(stack_) - kGuardBytes, kStackBytes + kGuardBytes);
  stack_ = nullptr;
}

void Fiber::start(void (*body)(void*), void* argument) {
  stop(false);
#ifdef FASTCONV_SHIM_TSAN
  if (kept_ready > 0) {
    const Kept next = kept[--kept_ready];
    kept[kept_ready] = kept[--kept_count];
    stack_ = next.stack;
    sanitizer_fiber_ = next.sanitizer_fiber;
  }
#endif
  if (stack_ == nullptr) make_stack();
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, kStackBytes);  // frames of a launch that was given up
#endif
#ifdef FASTCONV_SHIM_TSAN
  if (sanitizer_fiber_ == nullptr) sanitizer_fiber_ = __tsan_create_fiber(0);
#endif
  saved_ = prepared_stack(stack_, entry);
  body_ = body;
  argument_ = argument;
}

void Fiber::resume() {
  starting_body = body_;
  starting_argument = argument_;
#ifdef FASTCONV_SHIM_TSAN
  scheduler_sanitizer_fiber_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(sanitizer_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
#endif
  fastconv_shim_switch(&scheduler_saved_, saved_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#ifdef FASTCONV_SHIM_TSAN
  __tsan_switch_to_fiber(scheduler_sanitizer_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
  fastconv_shim_switch(&saved_, scheduler_saved_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Fiber::stop([[maybe_unused]] bool ended) {
#ifdef FASTCONV_SHIM_TSAN
  if (sanitizer_fiber_ == nullptr) return;
  if (ended && kept_count < kMostKept) {
    kept[kept_count++] = {stack_, sanitizer_fiber_};
    stack_ = nullptr;
  } else {
    __tsan_destroy_fiber(sanitizer_fiber_);
    free_stack();  // the next fiber there is another thread, and no race with this one
  }
  sanitizer_fiber_ = nullptr;
#endif
}

void Fiber::order_stopped_before_started() {
#ifdef FASTCONV_SHIM_TSAN
  kept_ready = kept_count;
#endif
}

void Fiber::divert_signal(void* signal_context, void (*landing)()) {
  alignas(16) static char stack[64 * 1024];
  auto* context = static_cast<ucontext_t*>(signal_context);
  // As after a call: the stack pointer is 8 past a multiple of 16.
  context->uc_mcontext.gregs[REG_RSP] = reinterpret_cast<greg_t>(stack + sizeof(stack) - 8);
  context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(landing);
}

}  // namespace fastconv::cuda_shim
