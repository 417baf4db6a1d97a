// SPDX-License-Identifier: MIT
// Host decisions of the LSTM.
#include "cuda/lstm/lstm_plan.cuh"

namespace fastconv::cuda {

int64_t persistent_shared_bytes(int64_t units, int64_t element_bytes) {
  if (element_bytes == 2) {
    // Two buffers of gate gradients of sixteen sequences; the weights of one gate on their way to
    // the registers.
    const int64_t backward = 2 * 16 * (4 * units + 8), forward = units * (units + 8);
    return 2 * (backward > forward ? backward : forward);
  }
  // Two buffers of gate gradients of four sequences, and half of the weights where the registers
  // do not hold all of them.
  return 2 * 4 * 4 * units * 4 + (units == 128 ? 4 * units * units * 4 / 2 : 0);
}

LstmPath choose_lstm_path(const LstmShape& shape, int64_t element_bytes, const Device& device) {
  const bool fits = shape.hidden <= kMostPersistentUnits && !shape.projected &&
                    element_bytes != 8 && shape.steps <= kMostPersistentSteps &&
                    persistent_shared_bytes(persistent_units(shape.hidden), element_bytes) <=
                        device.block_shared_bytes;
  const bool runs = element_bytes != 2 || device.compute_capability >= 80;
  // One step is one kernel in either form, and the other one reads each weight once.
  return fits && runs && shape.steps > 1 ? LstmPath::kPersistent : LstmPath::kSteps;
}

}  // namespace fastconv::cuda
