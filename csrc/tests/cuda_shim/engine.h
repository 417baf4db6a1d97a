// SPDX-License-Identifier: MIT
// Internal to the emulator: the state of the launch that runs. Plain arrays and no locks, because
// all fibers share it; see fiber.cpp on sanitizers.
#pragma once

#include <cstdint>

#include "tests/cuda_shim/device.h"
#include "tests/cuda_shim/emulator.h"
#include "tests/cuda_shim/fiber.h"
#include "tests/cuda_shim/runtime_api.h"

namespace fastconv::cuda_shim {

inline constexpr int kWarp = 32;
inline constexpr int kMaxThreads = 1024;

enum class State : uint8_t { kReady, kAtBarrier, kInCollective, kDone };

// The copies a thread has started, oldest first, each with the number of its group.
struct CopyQueue {
  static constexpr int kCapacity = 512;
  struct Entry {
    AsyncCopy copy;
    int group;
  };
  Entry entries[kCapacity];
  int first;
  int count;
  int group;  // number of the group that is open
};

struct Block;

struct Thread {
  ThreadView view;
  Block* block;
  int number;  // in the block
  State state;
  Where where;  // of the barrier or collective it waits at
  // Of the collective it waits at:
  Collective kind;
  uint32_t mask;
  int source_lane;
  uint32_t in[kWordsIn];
  uint32_t out[kWordsOut];
  CopyQueue copies;
  const void* atomic_seen;  // by ThreadSanitizer's fences
  bool fenced;
  Fiber fiber;

  int lane() const { return number % kWarp; }
};

struct Block {
  int64_t number;  // in the grid; -1: none
  int thread_count;
  int at_barrier;
  int done;
  int64_t barriers;  // passed
  void* shared;
  size_t shared_bytes;
  char barrier_key;  // addresses that stand for orders between threads
  char warp_keys[kMaxThreads / kWarp];
  Thread threads[kMaxThreads];
};

struct Launch {
  void (*body)(void*);
  void* context;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  const char* name;
  bool failed;
};
extern Launch launch;

// The thread that runs; nullptr in the scheduler.
extern Thread* running;

// Gives the turn back to the scheduler.
void wait_for_turn(Thread& thread);

// Order for ThreadSanitizer: what happened before release(key) is seen after acquire(key).
void release(const void* key);
void acquire(const void* key);

uint64_t next_random();

// Fills `out` of every lane of `mask`, whose threads have all called the same collective.
void finish_collective(Thread* warp, Collective kind, uint32_t mask);
void finish_mma(Thread* warp, Collective kind);

// Ends the launch with this text.
[[noreturn]] void give_up(const char* text);
// "kernel, block (..) thread (..)" for messages.
void describe_thread(const Thread& thread, char* text, size_t size);

}  // namespace fastconv::cuda_shim
