// SPDX-License-Identifier: MIT
// How the work of an LSTM call is cut: ranges, and the two ways to use several threads.
#pragma once

#include <cstdint>

#include "common/shapes.h"
#include "cpu/lstm/lstm_ukernels.h"
#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

struct LstmRange {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// Part `part` of `parts` nearly equal parts of [0, size).
LstmRange lstm_part(int64_t size, int64_t parts, int64_t part);

// Sequences of task `task` of `tasks`, so that all tasks have about the same number of rows.
LstmRange lstm_sequences(const LstmShape& shape, int64_t tasks, int64_t task);

enum class LstmSplit {
  kSequences,  // a task runs all steps of its sequences; nobody waits for anybody
  kUnits,      // a task runs all sequences of its units; all wait after every step
};

struct LstmThreads {
  int64_t threads;  // 1: everything on the calling thread
  LstmSplit split;
};

// Both splits give the same bits. Units are split when the recurrent weights are too large to be
// streamed by every thread, or when there are fewer sequences than threads.
LstmThreads lstm_threads(const LstmShape& shape);

const LstmKernels& lstm_kernels(Isa isa);

// Rows of one step that share the place their previous state comes from.
struct LstmRun {
  int64_t begin;  // sequence numbers [begin, end)
  int64_t end;
  const float* before;  // state of sequence `begin`, rows `width` apart, or nullptr for zeros
};

// The one or two runs of `sequences` at `step`; returns their number. `states` holds rows as the
// shape numbers them, `initial` one row per sequence or nullptr.
int lstm_runs(const LstmShape& shape, int64_t step, LstmRange sequences, const float* states,
              const float* initial, int64_t width, LstmRun runs[2]);

}  // namespace fastconv::cpu
