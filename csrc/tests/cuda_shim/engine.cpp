// SPDX-License-Identifier: MIT
// One launch: its blocks, the order in which their threads run, and how it is given up.
#include "tests/cuda_shim/engine.h"

#include <signal.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "tests/cuda_shim/guarded_memory.h"

#ifdef FASTCONV_SHIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace fastconv::cuda_shim {

ThreadView* running_thread = nullptr;
Thread* running = nullptr;
Launch launch = {};

namespace {

constexpr int kMaxLiveBlocks = 3;

Options current_options;
Counts current_counts = {};
std::string trace;
char error_text[1024] = "";
const char* noted_kernel = "kernel";
uint64_t random_state = 1;
// The end of a launch happens before what its caller does next, that before the next launch's
// blocks.
char launch_key;
char caller_key;

// Blocks are large and kept between launches: their fibers own stacks.
Block* live_blocks[kMaxLiveBlocks];

bool has_random_threads() {
  return current_options.schedule == Schedule::kRandom ||
         current_options.schedule == Schedule::kBlocksReversed;
}

void run_thread(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  acquire(&caller_key);
  launch.body(launch.context);
  if (thread.copies.count != 0)
    fail(thread.where, "thread ends with cp.async copies that it never waited for");
  thread.state = State::kDone;
  ++thread.block->done;
  wait_for_turn(thread);
  std::abort();  // finished threads get no turn
}

uint3 index_in(const dim3& size, int64_t number) {
  return {static_cast<unsigned>(number % size.x), static_cast<unsigned>(number / size.x % size.y),
          static_cast<unsigned>(number / size.x / size.y)};
}

void start_block(Block& block, int64_t number) {
  block.number = number;
  block.thread_count = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block.at_barrier = 0;
  block.done = 0;
  block.barriers = 0;
  block.shared_bytes = launch.shared_bytes;
  block.shared = guarded_allocate(launch.shared_bytes, 128, Flush::kEnd, "shared memory");
  release(&caller_key);
  for (int t = 0; t < block.thread_count; ++t) {
    Thread& thread = block.threads[t];
    thread.view = {index_in(launch.block, t), index_in(launch.grid, number), launch.block,
                   launch.grid, block.shared};
    thread.block = &block;
    thread.number = t;
    thread.state = State::kReady;
    thread.where = Where();
    thread.copies.first = thread.copies.count = thread.copies.group = 0;
    thread.atomic_seen = nullptr;
    thread.fenced = false;
    thread.fiber.start(run_thread, &thread);
  }
  ++current_counts.blocks;
}

void end_block(Block& block) {
  const bool intact = guarded_free(block.shared);
  for (int t = 0; t < block.thread_count; ++t)
    block.threads[t].fiber.stop(block.threads[t].state == State::kDone);
  block.number = -1;
  if (intact || launch.failed) return;
  launch.failed = true;
  std::snprintf(error_text, sizeof(error_text),
                "%s: block wrote beside its %zu bytes of shared memory", launch.name,
                launch.shared_bytes);
}

// Runs the thread until it waits or ends. Returns false when it could not run.
bool give_turn(Thread& thread) {
  if (thread.state != State::kReady || launch.failed) return false;
  running = &thread;
  running_thread = &thread.view;
  thread.fiber.resume();
  running = nullptr;
  running_thread = nullptr;
  return true;
}

// One turn for each thread in random order.
bool random_pass(Block& block) {
  int order[kMaxThreads];
  for (int t = 0; t < block.thread_count; ++t) {
    const int at = static_cast<int>(next_random() % static_cast<uint64_t>(t + 1));
    order[t] = order[at];
    order[at] = t;
  }
  bool progress = false;
  for (int t = 0; t < block.thread_count; ++t) progress |= give_turn(block.threads[order[t]]);
  return progress;
}

bool ordered_pass(Block& block, bool descending) {
  bool progress = false;
  for (int t = 0; t < block.thread_count; ++t)
    progress |= give_turn(block.threads[descending ? block.thread_count - 1 - t : t]);
  return progress;
}

// Each warp as far as it gets alone; back to the first one whenever a barrier opens.
bool warp_pass(Block& block) {
  const int warps = (block.thread_count + kWarp - 1) / kWarp;
  const int ahead = static_cast<int>((current_options.seed + block.number) % warps);
  const int64_t barriers = block.barriers;
  bool progress = false;
  for (int w = 0; w < warps; ++w) {
    const int first = (ahead + w) % warps * kWarp;
    const int last = first + kWarp < block.thread_count ? first + kWarp : block.thread_count;
    for (bool moved = true; moved;) {
      moved = false;
      for (int t = last - 1; t >= first; --t) moved |= give_turn(block.threads[t]);
      if (block.barriers != barriers) return true;
      progress |= moved;
    }
  }
  return progress;
}

bool pass(Block& block) {
  switch (current_options.schedule) {
    case Schedule::kAscending:
      return ordered_pass(block, false);
    case Schedule::kDescending:
      return ordered_pass(block, true);
    case Schedule::kWarpAhead:
      return warp_pass(block);
    case Schedule::kRandom:
    case Schedule::kBlocksReversed:
      return random_pass(block);
  }
  return false;
}

// Nobody can run, somebody waits: says who waits where.
void report_stuck(const Block& block) {
  const Thread* first = nullptr;
  for (int t = 0; t < block.thread_count && first == nullptr; ++t)
    if (block.threads[t].state != State::kDone) first = &block.threads[t];
  const Thread* other = nullptr;
  for (int t = 0; t < block.thread_count && other == nullptr; ++t) {
    const Thread& thread = block.threads[t];
    if (thread.state != first->state || thread.where.line() != first->where.line() ||
        thread.where.file_name() != first->where.file_name())
      other = &thread;
  }
  char who[200], also[200];
  describe_thread(*first, who, sizeof(who));
  if (other == nullptr) other = first;
  describe_thread(*other, also, sizeof(also));
  const bool ended = other->state == State::kDone;
  launch.failed = true;
  std::snprintf(error_text, sizeof(error_text),
                "%s waits for ever at the %s of %s:%u: divergence, for example %s %s %s:%u", who,
                first->state == State::kAtBarrier ? "barrier" : "warp collective",
                first->where.file_name(), first->where.line(), also,
                ended ? "has ended, last seen at" : "waits at", other->where.file_name(),
                other->where.line());
}

void run_blocks() {
  const int64_t blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const bool reversed = current_options.schedule == Schedule::kBlocksReversed;
  const int slots = reversed ? kMaxLiveBlocks : 1;
  int64_t started = 0;
  int live = 0;
  while (!launch.failed && (started < blocks || live > 0)) {
    for (int s = 0; s < slots && started < blocks; ++s) {
      if (live_blocks[s] == nullptr) (live_blocks[s] = new Block)->number = -1;
      if (live_blocks[s]->number >= 0) continue;
      start_block(*live_blocks[s], reversed ? blocks - 1 - started : started);
      ++started;
      ++live;
    }
    const int slot = static_cast<int>(slots == 1 ? 0 : next_random() % slots);
    if (live_blocks[slot] == nullptr || live_blocks[slot]->number < 0) continue;
    Block& block = *live_blocks[slot];
    const bool progress = pass(block);
    if (launch.failed) break;
    if (block.done == block.thread_count) {
      end_block(block);
      --live;
    } else if (!progress) {
      report_stuck(block);
    }
  }
  for (Block* block : live_blocks)
    if (block != nullptr && block->number >= 0) end_block(*block);
}

// --- Faults -------------------------------------------------------------------------------------

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};

void land_after_signal() {
  wait_for_turn(*running);
  std::abort();
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (running == nullptr || launch.failed) {
    ::signal(signal, SIG_DFL);  // not the kernel's: let it happen
    return;
  }
  char who[200], at[200] = "integer division by zero";
  describe_thread(*running, who, sizeof(who));
  if (signal != SIGFPE) describe_address(info->si_addr, at, sizeof(at));
  launch.failed = true;
  std::snprintf(error_text, sizeof(error_text), "%s: invalid access: %s; last checked line %s:%u",
                who, at, running->where.file_name(), running->where.line());
  Fiber::divert_signal(context, land_after_signal);
}

class FaultHandlers {
 public:
  FaultHandlers() {
    stack_t stack = {};
    stack.ss_sp = signal_stack_;
    stack.ss_size = sizeof(signal_stack_);
    sigaltstack(&stack, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &old_[i]);
  }
  ~FaultHandlers() {
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static char signal_stack_[64 * 1024];
  stack_t old_stack_;
  struct sigaction old_[3];
};
char FaultHandlers::signal_stack_[64 * 1024];

}  // namespace

// --- Interface ----------------------------------------------------------------------------------

void set_options(const Options& options) {
  current_options = options;
  random_state = options.seed * 2 + 1;
}
const Options& options() {
  return current_options;
}
Counts& counts() {
  return current_counts;
}
void reset_counts() {
  current_counts = {};
  trace.clear();
}
const std::string& kernel_trace() {
  return trace;
}
const char* last_error() {
  return error_text;
}
void note_kernel(const char* text) {
  noted_kernel = text;
}

uint64_t next_random() {
  random_state += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t z = random_state;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

void wait_for_turn(Thread& thread) {
  release(&launch_key);
  thread.fiber.suspend();
}

void maybe_preempt() {
  if (running != nullptr && has_random_threads() && next_random() % 8 == 0) wait_for_turn(*running);
}

void release([[maybe_unused]] const void* key) {
#ifdef FASTCONV_SHIM_TSAN
  __tsan_release(const_cast<void*>(key));
#endif
}
void acquire([[maybe_unused]] const void* key) {
#ifdef FASTCONV_SHIM_TSAN
  __tsan_acquire(const_cast<void*>(key));
#endif
}

void describe_thread(const Thread& thread, char* text, size_t size) {
  const ThreadView& v = thread.view;
  std::snprintf(text, size, "%s, block (%u, %u, %u) thread (%u, %u, %u)", launch.name,
                v.block_index.x, v.block_index.y, v.block_index.z, v.thread_index.x,
                v.thread_index.y, v.thread_index.z);
}

void give_up(const char* text) {
  launch.failed = true;
  std::snprintf(error_text, sizeof(error_text), "%s", text);
  wait_for_turn(*running);
  std::abort();  // a launch that failed gives no more turns
}

void fail(Where where, const char* format, ...) {
  char who[200], what[400], text[900];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof(what), format, arguments);
  va_end(arguments);
  describe_thread(*running, who, sizeof(who));
  std::snprintf(text, sizeof(text), "%s: %s, at %s:%u", who, what, where.file_name(), where.line());
  give_up(text);
}

cudaError_t run_grid(const cudaLaunchConfig_t& config, void (*body)(void*), void* context) {
  launch = {body,         context, config.grid_size, config.block_size, config.dynamic_shared_bytes,
            noted_kernel, false};
  ++current_counts.launches;
  trace += trace.empty() ? "" : "|";
  trace += noted_kernel;
  Fiber::order_stopped_before_started();
  {
    const FaultHandlers handlers;
    run_blocks();
  }
  acquire(&launch_key);
  return launch.failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace fastconv::cuda_shim
