// SPDX-License-Identifier: MIT
#include "cpu/lstm/lstm_split.h"

#include <algorithm>

#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Recurrent weights above this size do not stay in a core's own cache from step to step.
constexpr int64_t kOwnCacheFloats = 200'000;
// Multiply-adds of one step below which waiting for each other costs more than it saves; the second
// where the weights would otherwise be read from beyond the core's own cache.
constexpr int64_t kStepMultiplyAdds = 1'000'000;
constexpr int64_t kStreamedMultiplyAdds = 250'000;

// Rows of the sequences [0, end).
int64_t rows_before(const LstmShape& shape, int64_t end) {
  if (shape.row_start == nullptr) return end * shape.steps;
  int64_t rows = 0;
  for (int64_t t = 0; t < shape.steps; ++t) rows += std::min(end, shape.active(t));
  return rows;
}

// The first sequence of task `task`.
int64_t first_sequence(const LstmShape& shape, int64_t tasks, int64_t task) {
  const int64_t wanted = shape.rows() * task / tasks;
  int64_t low = 0, high = shape.active(0);
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows_before(shape, middle) < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace

LstmRange lstm_part(int64_t size, int64_t parts, int64_t part) {
  return {size * part / parts, size * (part + 1) / parts};
}

LstmRange lstm_sequences(const LstmShape& shape, int64_t tasks, int64_t task) {
  const int64_t begin = task == 0 ? 0 : first_sequence(shape, tasks, task);
  const int64_t end = task == tasks - 1 ? shape.active(0) : first_sequence(shape, tasks, task + 1);
  return {begin, end};
}

LstmThreads lstm_threads(const LstmShape& shape) {
  const int64_t recurrent = shape.gates() * shape.output;
  const int64_t weights = shape.gates() * shape.input + recurrent;
  const int64_t bytes = 4 * (shape.rows() * (shape.input + 6 * shape.hidden) + weights);
  const int64_t threads = worthwhile_threads(shape.multiply_adds(), bytes);
  if (threads == 1) return {1, LstmSplit::kSequences};
  const int64_t sequences = shape.active(0);
  const bool streams = recurrent > kOwnCacheFloats;
  const int64_t step = shape.rows() / shape.steps * recurrent;
  const int64_t least = streams ? kStreamedMultiplyAdds : kStepMultiplyAdds;
  if (step >= least && (streams || sequences < 2 * threads)) return {threads, LstmSplit::kUnits};
  return {std::min(threads, sequences), LstmSplit::kSequences};
}

int lstm_runs(const LstmShape& shape, int64_t step, LstmRange sequences, const float* states,
              const float* initial, int64_t width, LstmRun runs[2]) {
  const int64_t end = std::min(sequences.end, shape.active(step));
  const int64_t continued = std::min(end, shape.continued(step));
  int count = 0;
  if (sequences.begin < continued) {
    const int64_t row = shape.first_row(shape.step_before(step)) + sequences.begin;
    runs[count++] = {sequences.begin, continued, states + row * width};
  }
  const int64_t fresh = std::max(sequences.begin, continued);
  if (fresh < end)
    runs[count++] = {fresh, end, initial == nullptr ? nullptr : initial + fresh * width};
  return count;
}

const LstmKernels& lstm_kernels(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return kLstmKernelsAvx512;
    case Isa::kAvx2:
      return kLstmKernelsAvx2;
    case Isa::kScalar:
      break;
  }
  return kLstmKernelsScalar;
}

}  // namespace fastconv::cpu
