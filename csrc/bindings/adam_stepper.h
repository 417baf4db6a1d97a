// SPDX-License-Identifier: MIT
// Steps a torch.optim.Optimizer object without running Python: remembers what its param_groups and
// state held, sees by comparing pointers that they still do, and runs the kernels.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/adam_gpu.h"
#include "bindings/adam_options.h"
#include "bindings/adam_table.h"

namespace fastconv::bindings {

// The entries a dict held when it was looked at. Holds references, so that no other object can take
// the place of one of them in memory.
class DictSnapshot {
 public:
  void take(PyObject* dict);
  bool still_holds(PyObject* dict) const;

 private:
  std::vector<std::pair<pybind11::object, pybind11::object>> items_;
};

class AdamStepper {
 public:
  // The names are what profilers call the step and zero_grad; the dicts are torch's hooks of every
  // optimizer.
  AdamStepper(std::string name, std::string zero_grad_name, pybind11::dict pre_hooks,
              pybind11::dict post_hooks);

  // One step, if there is nothing unusual to do. False: nothing was done, because the optimizer has
  // hooks, or its groups, parameters or state are not those of the last prepare().
  bool step(pybind11::handle optimizer);

  // As step(), but leaves hooks and the parameters that prepare() returned to the caller, whose
  // gradients (unscaled) have this sum of squares. None: nothing was done. Else whether the step
  // took place, and the factor that clips gradients.
  pybind11::object step_without_hooks(pybind11::handle optimizer, double other_squares,
                                      bool others_finite);

  // What zero_grad(set_to_none=True) does, under the same condition as step(), hooks apart.
  bool drop_gradients(pybind11::handle optimizer);

  // Looks at everything. Returns the parameters that the kernels cannot work on.
  pybind11::list prepare(pybind11::handle optimizer);

  // Forgets what prepare() saw.
  void reset();

  // Whether the last prepare() found parameters that the kernels cannot work on.
  bool has_others() const { return has_others_; }

  // Of the last step, before clipping; None if it was not computed.
  pybind11::object grad_norm() const;

  // Steps left out because gradients were not finite. Waits for the GPU if one counts them.
  int64_t skipped_steps() const;
  void set_skipped_steps(int64_t steps);

 private:
  struct Group {
    pybind11::object dict;
    DictSnapshot items;
    std::vector<pybind11::object> params;
    AdamOptions options;
    bool readable;             // false: holds options that only torch's own step understands
    bool may_change_in_place;  // holds options that are tensors or lists
  };
  struct Param {
    PyObject* object;        // kept alive by Group::params
    pybind11::object state;  // null: has none yet
    DictSnapshot state_items;
    size_t group;
    int gpu;     // index into gpus_; -1: on the CPU
    size_t row;  // in the table of its device, if it has state
  };

  bool groups_unchanged(PyObject* groups);
  bool state_unchanged(PyObject* state) const;
  bool take_gradients();
  bool run(PyObject* attributes, double other_squares, bool others_finite);
  void run_everywhere(AdamGradientOptions options, const AdamGpuGradients& on_gpu);
  AdamOutcome run_on_cpu(const AdamGradientOptions& options);
  void release_gradients();
  int gpu_of(const at::Tensor& param);
  AdamTable& table_of(const Param& param);
  const AdamTable& table_of(const Param& param) const;
  std::vector<const AdamOptions*> options_of_groups() const;
  int64_t skipped_on_gpus() const;
  bool add_param(PyObject* param, PyObject* state, size_t group);
  bool add_group(PyObject* dict);

  std::string name_;
  std::string zero_grad_name_;
  pybind11::dict pre_hooks_;
  pybind11::dict post_hooks_;
  pybind11::object groups_;
  pybind11::object state_;
  std::vector<Group> group_list_;
  DictSnapshot state_items_;
  std::vector<Param> params_;
  std::vector<size_t> group_of_row_;
  AdamTable table_;  // of the CPU
  std::vector<AdamGpu> gpus_;
  AdamOutcome last_;
  bool norm_on_gpu_ = false;  // the norm of last_ is on gpus_[0]
  int64_t skipped_ = 0;       // those that no GPU counts
  bool prepared_ = false;
  bool has_others_ = false;  // parameters that the kernels cannot work on
};

void bind_adam_stepper(pybind11::module_& m);

}  // namespace fastconv::bindings
