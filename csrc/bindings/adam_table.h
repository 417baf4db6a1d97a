// SPDX-License-Identifier: MIT
// The list of tensors one Adam step works on, as the kernels want it: checked once, then only
// looked at for what may change from step to step.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "cpu/adam/adam.h"

namespace fastconv::bindings {

// A parameter and its state, all on one device. `max_exp_avg_sq` is undefined without amsgrad.
struct AdamSlot {
  at::Tensor param;
  at::Tensor exp_avg;
  at::Tensor exp_avg_sq;
  at::Tensor max_exp_avg_sq;
  // One number, the steps taken so far: float32, or float64 if it is on the CPU.
  at::Tensor step;
};

// Why the kernels cannot work on this slot, as "expected ..., got ..."; empty when they can.
std::string adam_slot_problem(const AdamSlot& slot);

// Whether the kernels can read this gradient, if need be by way of a copy.
bool adam_gradient_readable(const at::Tensor& gradient, const at::Tensor& param);

// How a step treats gradients before the update.
struct AdamGradientOptions {
  double unscale = 1.0;  // gradients are multiplied by this, and stored if write_back
  bool write_back = false;
  double max_norm = -1.0;  // negative: no clipping
  bool skip_nonfinite = false;
  // Of gradients that are stepped elsewhere, unscaled: they count in the norm.
  double other_squares = 0.0;
  bool others_finite = true;
};

struct AdamOutcome {
  bool stepped = true;
  bool has_norm = false;
  double norm = 0.0;    // of all gradients, unscaled, before clipping
  double factor = 1.0;  // what clipping multiplied the unscaled gradients by
};

class AdamTable {
 public:
  void clear();

  // Precondition: adam_slot_problem(slot) is empty.
  void add(const AdamSlot& slot);

  // Cuts the work into chunks and looks for memory that two slots share. After the last add().
  void finish();

  size_t size() const { return rows_.size(); }

  int64_t elements() const { return elements_; }
  bool overlapping() const { return overlapping_; }
  const AdamSlot& slot(size_t row) const { return rows_[row].slot; }
  // As of the last set_gradient().
  const cpu::AdamTensor& tensor(size_t row) const { return tensors_[row]; }
  bool takes_part(size_t row) const { return rows_[row].takes_part; }
  cpu::AdamType type(size_t row) const { return tensors_[row].type; }

  // False when a tensor of the slot has moved or changed its size since add().
  bool unchanged(size_t row) const;

  // Undefined: the slot takes no part. False when the kernels cannot read this gradient.
  bool set_gradient(size_t row, const at::Tensor& gradient);

  // Looks at the gradients: the norm and the factor that clips it, and whether to step at all.
  // Then scalars(row, step number) is asked for each row with a gradient, in order, the step
  // counters go up, and the kernels run.
  template <class Scalars>
  AdamOutcome run(const AdamGradientOptions& options, const Scalars& scalars) {
    AdamOutcome outcome;
    cpu::AdamGradient gradient;
    if (!look_at_gradients(options, &outcome, &gradient)) return outcome;
    for (size_t row = 0; row < rows_.size(); ++row) {
      if (!rows_[row].takes_part) continue;
      tensors_[row].coefficients = scalars(row, count_step(row));
    }
    update(options, gradient);
    return outcome;
  }

  // The sum of squares of all gradients times options.unscale, and whether all are finite.
  double gradient_squares(const AdamGradientOptions& options, bool* finite);

  // After kernels changed what takes part: autograd is told, and gradients that the kernels got as
  // copies are stored, if write_back.
  void stepped(bool write_back);

  // Drops the references to the gradients of the last run.
  void release_gradients();

 private:
  struct Row {
    AdamSlot slot;
    at::Tensor array;  // the parameter as real numbers
    const void* arrays[5];
    int64_t sizes[5];
    bool contiguous;
    bool step_is_double;
    bool takes_part;
  };
  // A gradient in another layout than its parameter, and the copy the kernels read.
  struct Copied {
    at::Tensor gradient;
    at::Tensor copy;
  };

  bool look_at_gradients(const AdamGradientOptions& options, AdamOutcome* outcome,
                         cpu::AdamGradient* gradient);
  double count_step(size_t row);
  void update(const AdamGradientOptions& options, const cpu::AdamGradient& gradient);
  bool any_overlap() const;
  cpu::AdamList list() const;

  std::vector<Row> rows_;
  std::vector<cpu::AdamTensor> tensors_;
  std::vector<cpu::AdamChunk> chunks_;
  std::vector<double> partial_sums_;
  std::vector<Copied> copied_;
  int64_t elements_ = 0;
  bool overlapping_ = false;
  bool last_first_ = false;  // the direction of the last step; steps alternate
};

}  // namespace fastconv::bindings
