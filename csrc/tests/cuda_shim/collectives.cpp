// SPDX-License-Identifier: MIT
// Barriers, warp collectives, asynchronous copies and fences: how threads meet, and what is wrong
// when they do not.
#include <cstring>

#include "tests/cuda_shim/engine.h"

namespace fastconv::cuda_shim {
namespace {

bool same_line(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

Thread* warp_of(Thread& thread) {
  return &thread.block->threads[thread.number - thread.lane()];
}

// The 16-bit element (row, column) of matrix m, whose rows are the words of lanes 8 m to 8 m + 7.
uint32_t matrix_element(const Thread* warp, int matrix, int row, int column) {
  return warp[8 * matrix + row].in[column / 2] >> (16 * (column % 2)) & 0xffff;
}

void finish_matrices(Thread* warp, bool transposed) {
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const uint32_t low =
          transposed ? matrix_element(warp, m, 2 * t, g) : matrix_element(warp, m, g, 2 * t);
      const uint32_t high = transposed ? matrix_element(warp, m, 2 * t + 1, g)
                                       : matrix_element(warp, m, g, 2 * t + 1);
      warp[lane].out[m] = low | high << 16;
    }
  }
}

// The lanes of `mask` that exist and have not met the caller yet; ends the launch when one of them
// has ended or waits for something else.
bool all_arrived(const Thread& caller, const Thread* warp) {
  bool all = true;
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((caller.mask >> lane & 1) == 0) continue;
    const int number = caller.number - caller.lane() + lane;
    if (number >= caller.block->thread_count)
      fail(caller.where, "mask 0x%08x names lane %d, which the block does not have", caller.mask,
           lane);
    const Thread& other = warp[lane];
    if (other.state == State::kDone)
      fail(caller.where, "mask 0x%08x names lane %d, which has ended", caller.mask, lane);
    if (other.state != State::kInCollective) {
      all = false;
      continue;
    }
    if (other.mask != caller.mask || other.kind != caller.kind ||
        !same_line(other.where, caller.where))
      fail(caller.where, "mask 0x%08x meets lane %d with mask 0x%08x at %s:%u", caller.mask, lane,
           other.mask, other.where.file_name(), other.where.line());
  }
  return all;
}

}  // namespace

void block_barrier(Where where) {
  Thread& thread = *running;
  Block& block = *thread.block;
  thread.where = where;
  if (block.at_barrier > 0)
    for (int t = 0; t < block.thread_count; ++t) {
      const Thread& other = block.threads[t];
      if (other.state != State::kAtBarrier) continue;
      if (!same_line(other.where, where))
        fail(where, "barrier meets another barrier, of thread %d at %s:%u", t,
             other.where.file_name(), other.where.line());
      break;
    }
  if (block.done > 0) fail(where, "barrier after %d threads of the block have ended", block.done);
  release(&block.barrier_key);
  thread.state = State::kAtBarrier;
  if (++block.at_barrier == block.thread_count) {
    for (int t = 0; t < block.thread_count; ++t) block.threads[t].state = State::kReady;
    block.at_barrier = 0;
    ++block.barriers;
    ++counts().barriers;
  }
  wait_for_turn(thread);
  acquire(&block.barrier_key);
}

void finish_collective(Thread* warp, Collective kind, uint32_t mask) {
  uint32_t ballot = 0;
  switch (kind) {
    case Collective::kSync:
      break;
    case Collective::kShuffle:
      for (int lane = 0; lane < kWarp; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        const int source = warp[lane].source_lane;
        for (int i = 0; i < 2; ++i) warp[lane].out[i] = warp[source].in[i];
      }
      break;
    case Collective::kBallot:
      for (int lane = 0; lane < kWarp; ++lane)
        if ((mask >> lane & 1) != 0) ballot |= warp[lane].in[0] << lane;
      for (int lane = 0; lane < kWarp; ++lane)
        if ((mask >> lane & 1) != 0) warp[lane].out[0] = ballot;
      break;
    case Collective::kMatrix:
    case Collective::kMatrixTransposed:
      finish_matrices(warp, kind == Collective::kMatrixTransposed);
      ++counts().ldmatrix;
      break;
    case Collective::kMmaBf16:
    case Collective::kMmaHalf:
    case Collective::kMmaTf32:
      finish_mma(warp, kind);
      ++counts().mma;
      break;
  }
}

const uint32_t* collective(Collective kind, uint32_t mask, const uint32_t* words, int count,
                           int source_lane, Where where) {
  Thread& thread = *running;
  Thread* const warp = warp_of(thread);
  char* const key = &thread.block->warp_keys[thread.number / kWarp];
  thread.where = where;
  if ((mask >> thread.lane() & 1) == 0)
    fail(where, "lane %d calls with mask 0x%08x, which does not name it", thread.lane(), mask);
  if (kind == Collective::kShuffle &&
      (source_lane < 0 || source_lane >= kWarp || (mask >> source_lane & 1) == 0))
    fail(where, "lane %d reads from lane %d, outside mask 0x%08x", thread.lane(), source_lane,
         mask);
  thread.kind = kind;
  thread.mask = mask;
  thread.source_lane = source_lane;
  for (int i = 0; i < count; ++i) thread.in[i] = words[i];
  if (kind == Collective::kSync) release(key);
  thread.state = State::kInCollective;
  if (all_arrived(thread, warp)) {
    finish_collective(warp, kind, mask);
    for (int lane = 0; lane < kWarp; ++lane)
      if ((mask >> lane & 1) != 0) warp[lane].state = State::kReady;
  }
  wait_for_turn(thread);
  if (kind == Collective::kSync) acquire(key);
  return thread.out;
}

// --- Memory -------------------------------------------------------------------------------------

void check_aligned(const void* pointer, size_t bytes, Where where) {
  ++counts().checked_accesses;
  if (running == nullptr) return;
  running->where = where;
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0)
    fail(where, "misaligned access of %zu bytes at %p", bytes, pointer);
  maybe_preempt();
}

void check_shared(const void* pointer, size_t bytes, Where where) {
  const auto* at = static_cast<const char*>(pointer);
  const auto* begin = static_cast<const char*>(running->block->shared);
  if (at < begin || at + bytes > begin + running->block->shared_bytes)
    fail(where, "%zu bytes at offset %td are not in the block's %zu bytes of shared memory", bytes,
         at - begin, running->block->shared_bytes);
}

bool copies_run_at_issue() {
  return options().copy_at == CopyAt::kIssue;
}

void start_copy(const AsyncCopy& copy, Where where) {
  Thread& thread = *running;
  thread.where = where;
  ++counts().async_copies;
  check_shared(copy.shared, 16, where);
  if (copy.valid_bytes < 0 || copy.valid_bytes > 16)
    fail(where, "cp.async of %d valid bytes, expected 0 to 16", copy.valid_bytes);
  if (reinterpret_cast<uintptr_t>(copy.shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(copy.global) % 16 != 0)
    fail(where, "misaligned cp.async of 16 bytes from %p to %p", copy.global, copy.shared);
  CopyQueue& queue = thread.copies;
  if (queue.count == CopyQueue::kCapacity)
    fail(where, "more than %d copies in flight", CopyQueue::kCapacity);
  queue.entries[(queue.first + queue.count++) % CopyQueue::kCapacity] = {copy, queue.group};
}

void commit_copies() {
  ++running->copies.group;
}

bool take_copy(int pending, AsyncCopy& copy) {
  CopyQueue& queue = running->copies;
  if (queue.count == 0 || queue.entries[queue.first].group >= queue.group - pending) return false;
  copy = queue.entries[queue.first].copy;
  queue.first = (queue.first + 1) % CopyQueue::kCapacity;
  --queue.count;
  return true;
}

// --- Fences -------------------------------------------------------------------------------------
// Atomics are relaxed. A fence before one releases what the thread did, a fence after one acquires
// what those released whose atomic it has seen.

void before_atomic(const void* address) {
  if (running->fenced) release(address);
}

void after_atomic(const void* address) {
  running->atomic_seen = address;
}

void thread_fence() {
  running->fenced = true;
  if (running->atomic_seen != nullptr) acquire(running->atomic_seen);
}

}  // namespace fastconv::cuda_shim
