// SPDX-License-Identifier: MIT
#include "bindings/adam_stepper.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>
#include <optional>

namespace fastconv::bindings {
namespace {

// Attribute and key names, made once.
struct Names {
  PyObject* param_groups = PyUnicode_InternFromString("param_groups");
  PyObject* params = PyUnicode_InternFromString("params");
  PyObject* state = PyUnicode_InternFromString("state");
  PyObject* grad_scale = PyUnicode_InternFromString("grad_scale");
  PyObject* found_inf = PyUnicode_InternFromString("found_inf");
  PyObject* max_grad_norm = PyUnicode_InternFromString("max_grad_norm");
  PyObject* skip_nonfinite = PyUnicode_InternFromString("skip_nonfinite");
  PyObject* pre_hooks = PyUnicode_InternFromString("_optimizer_step_pre_hooks");
  PyObject* post_hooks = PyUnicode_InternFromString("_optimizer_step_post_hooks");
};

const Names& names() {
  static const Names instance;
  return instance;
}

// Borrowed; nullptr when the key is missing or None.
PyObject* find(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value == Py_None ? nullptr : value;
}

PyObject* find(PyObject* dict, const char* key) {
  return find(dict, py::str(key).ptr());
}

// The __dict__ of the optimizer.
py::object attributes_of(py::handle optimizer) {
  PyObject* dict = PyObject_GenericGetDict(optimizer.ptr(), nullptr);
  if (dict == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(dict);
}

bool read_bool(PyObject* dict, const char* key) {
  PyObject* value = find(dict, key);
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

// A number, numpy's included; false for anything else.
bool read_number(PyObject* value, double* number) {
  if (value == nullptr || !PyNumber_Check(value) || THPVariable_Check(value)) return false;
  *number = PyFloat_AsDouble(value);
  if (*number == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return true;
}

// A plain number or a tensor of one.
bool read_rate(PyObject* value, double* number, at::Tensor* tensor) {
  *tensor = at::Tensor();
  if (read_number(value, number)) return true;
  if (value == nullptr || !THPVariable_Check(value)) return false;
  *tensor = THPVariable_Unpack(value);
  return tensor->numel() == 1;
}

// False: an option that only torch's own step understands.
bool read_options(PyObject* group, AdamOptions* options, bool* may_change_in_place) {
  PyObject* lr = find(group, "lr");
  PyObject* betas = find(group, "betas");
  if (betas == nullptr || !PySequence_Check(betas) || PySequence_Size(betas) != 2) return false;
  const py::object beta1 = py::reinterpret_steal<py::object>(PySequence_GetItem(betas, 0));
  const py::object beta2 = py::reinterpret_steal<py::object>(PySequence_GetItem(betas, 1));
  AdamOptions o;
  if (!read_rate(lr, &o.lr, &o.lr_tensor) || !read_rate(beta1.ptr(), &o.beta1, &o.beta1_tensor) ||
      !read_rate(beta2.ptr(), &o.beta2, &o.beta2_tensor) ||
      !read_number(find(group, "eps"), &o.eps) ||
      !read_number(find(group, "weight_decay"), &o.weight_decay) ||
      read_bool(group, "differentiable"))
    return false;
  o.amsgrad = read_bool(group, "amsgrad");
  o.maximize = read_bool(group, "maximize");
  o.decoupled_weight_decay = read_bool(group, "decoupled_weight_decay");
  *may_change_in_place = o.has_tensors() || !PyTuple_Check(betas);
  *options = o;
  return true;
}

at::Tensor tensor_in(PyObject* dict, const char* key) {
  PyObject* value = find(dict, key);
  return value != nullptr && THPVariable_Check(value) ? THPVariable_Unpack(value) : at::Tensor();
}

[[noreturn]] void refuse(const char* name, const char* expected, PyObject* got) {
  throw py::type_error(std::string("Adam: expected ") + name + " to be " + expected + ", got " +
                       Py_TYPE(got)->tp_name);
}

const at::Tensor& scalar_tensor(PyObject* value, const char* name) {
  if (!THPVariable_Check(value)) refuse(name, "a tensor of one number", value);
  return THPVariable_Unpack(value);
}

double read_scalar_tensor(PyObject* value, const char* name) {
  return scalar_tensor(value, name).item<double>();
}

bool has_hooks(PyObject* attributes, PyObject* key) {
  PyObject* hooks = find(attributes, key);
  return hooks != nullptr && PyDict_Check(hooks) && PyDict_Size(hooks) > 0;
}

// What the optimizer says of gradients; reading the tensors waits for the device they are on.
struct GradientOptions {
  AdamGradientOptions options;
  PyObject* found_inf = nullptr;   // borrowed
  PyObject* grad_scale = nullptr;  // borrowed

  // True when the step is to be left out.
  bool read_tensors() {
    if (grad_scale != nullptr) options.unscale = 1.0 / read_scalar_tensor(grad_scale, "grad_scale");
    return found_inf != nullptr && read_scalar_tensor(found_inf, "found_inf") != 0.0;
  }

  AdamGpuGradients on_gpu() const {
    AdamGpuGradients g;
    if (grad_scale != nullptr) g.grad_scale = scalar_tensor(grad_scale, "grad_scale");
    if (found_inf != nullptr) g.found_inf = scalar_tensor(found_inf, "found_inf");
    g.max_norm = options.max_norm;
    g.skip_nonfinite = options.skip_nonfinite;
    return g;
  }
};

GradientOptions read_gradient_options(PyObject* attributes) {
  GradientOptions read;
  read.found_inf = find(attributes, names().found_inf);
  read.grad_scale = find(attributes, names().grad_scale);
  AdamGradientOptions& o = read.options;
  o.write_back = read.grad_scale != nullptr;
  if (PyObject* norm = find(attributes, names().max_grad_norm)) {
    if (!read_number(norm, &o.max_norm)) refuse("max_grad_norm", "a number or None", norm);
    if (!(o.max_norm >= 0.0))
      throw py::value_error("Adam: expected max_grad_norm of at least 0, got " +
                            std::string(py::str(py::handle(norm))));
  }
  PyObject* skip = find(attributes, names().skip_nonfinite);
  o.skip_nonfinite = skip != nullptr && PyObject_IsTrue(skip) == 1;
  return read;
}

}  // namespace

void DictSnapshot::take(PyObject* dict) {
  items_.clear();
  Py_ssize_t position = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict, &position, &key, &value))
    items_.emplace_back(py::reinterpret_borrow<py::object>(key),
                        py::reinterpret_borrow<py::object>(value));
}

bool DictSnapshot::still_holds(PyObject* dict) const {
  if (PyDict_Size(dict) != static_cast<Py_ssize_t>(items_.size())) return false;
  Py_ssize_t position = 0;
  PyObject *key, *value;
  for (const auto& [expected_key, expected_value] : items_)
    if (!PyDict_Next(dict, &position, &key, &value) || key != expected_key.ptr() ||
        value != expected_value.ptr())
      return false;
  return true;
}

AdamStepper::AdamStepper(std::string name, std::string zero_grad_name, py::dict pre_hooks,
                         py::dict post_hooks)
    : name_(std::move(name)),
      zero_grad_name_(std::move(zero_grad_name)),
      pre_hooks_(std::move(pre_hooks)),
      post_hooks_(std::move(post_hooks)) {}

void AdamStepper::reset() {
  prepared_ = false;
  groups_ = py::object();
  state_ = py::object();
  group_list_.clear();
  state_items_ = {};
  params_.clear();
  group_of_row_.clear();
  table_.clear();
  skipped_ += skipped_on_gpus();
  gpus_.clear();
}

int64_t AdamStepper::skipped_on_gpus() const {
  int64_t steps = 0;
  for (const AdamGpu& gpu : gpus_) steps += adam_gpu_read(gpu).skipped_steps;
  return steps;
}

int64_t AdamStepper::skipped_steps() const {
  return skipped_ + skipped_on_gpus();
}

void AdamStepper::set_skipped_steps(int64_t steps) {
  skipped_ = steps - skipped_on_gpus();
}

py::object AdamStepper::grad_norm() const {
  if (!last_.has_norm) return py::none();
  return py::float_(norm_on_gpu_ ? adam_gpu_read(gpus_.front()).norm : last_.norm);
}

// The index into gpus_, made on first sight; -1 for the CPU.
int AdamStepper::gpu_of(const at::Tensor& param) {
  if (param.is_cpu()) return -1;
  for (size_t i = 0; i < gpus_.size(); ++i)
    if (gpus_[i].device == param.device()) return static_cast<int>(i);
  gpus_.push_back({param.device(), {}, {}, {}});
  return static_cast<int>(gpus_.size()) - 1;
}

AdamTable& AdamStepper::table_of(const Param& param) {
  return param.gpu < 0 ? table_ : gpus_[static_cast<size_t>(param.gpu)].table;
}

const AdamTable& AdamStepper::table_of(const Param& param) const {
  return param.gpu < 0 ? table_ : gpus_[static_cast<size_t>(param.gpu)].table;
}

std::vector<const AdamOptions*> AdamStepper::options_of_groups() const {
  std::vector<const AdamOptions*> options;
  for (const Group& group : group_list_) options.push_back(&group.options);
  return options;
}

// False: the kernels cannot work on this parameter.
bool AdamStepper::add_param(PyObject* object, PyObject* state, size_t group) {
  if (!group_list_[group].readable || !THPVariable_Check(object)) return false;
  const at::Tensor& param = THPVariable_Unpack(object);
  const at::Tensor& gradient = param.unsafeGetTensorImpl()->grad();
  const bool known_device = param.is_cpu() || adam_gpu_built(param.device());
  if (gradient.defined() && !(known_device && adam_gradient_readable(gradient, param)))
    return false;
  Param p{object, {}, {}, group, -1, 0};
  PyObject* own = PyDict_GetItemWithError(state, object);
  if (own == nullptr && PyErr_Occurred()) throw py::error_already_set();
  if (own != nullptr && PyDict_Check(own) && PyDict_Size(own) > 0) {
    AdamSlot slot{
        param, tensor_in(own, "exp_avg"), tensor_in(own, "exp_avg_sq"), {}, tensor_in(own, "step")};
    if (group_list_[group].options.amsgrad) {
      slot.max_exp_avg_sq = tensor_in(own, "max_exp_avg_sq");
      if (!slot.max_exp_avg_sq.defined()) return false;
    }
    if (!known_device || !adam_slot_problem(slot).empty()) return false;
    p.state = py::reinterpret_borrow<py::object>(own);
    p.state_items.take(own);
    p.gpu = gpu_of(param);
    p.row = table_of(p).size();
    table_of(p).add(slot);
    (p.gpu < 0 ? group_of_row_ : gpus_[static_cast<size_t>(p.gpu)].group_of_row).push_back(group);
  } else if (gradient.defined()) {
    return false;
  }
  params_.push_back(std::move(p));
  return true;
}

// False: not what torch.optim makes.
bool AdamStepper::add_group(PyObject* dict) {
  if (!PyDict_Check(dict)) return false;
  PyObject* params = find(dict, names().params);
  if (params == nullptr || !PyList_Check(params)) return false;
  Group group{py::reinterpret_borrow<py::object>(dict), {}, {}, {}, false, false};
  group.readable = read_options(dict, &group.options, &group.may_change_in_place);
  group.items.take(dict);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i)
    group.params.push_back(py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params, i)));
  group_list_.push_back(std::move(group));
  return true;
}

py::list AdamStepper::prepare(py::handle optimizer) {
  reset();
  const py::object attributes = attributes_of(optimizer);
  PyObject* groups = find(attributes.ptr(), names().param_groups);
  PyObject* state = find(attributes.ptr(), names().state);
  if (groups == nullptr || !PyList_Check(groups))
    throw py::type_error("Adam: expected param_groups to be a list");
  if (state == nullptr || !PyDict_Check(state))
    throw py::type_error("Adam: expected state to be a dict");
  py::list others;
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups); ++g) {
    if (!add_group(PyList_GET_ITEM(groups, g)))
      throw py::type_error(
          "Adam: expected a dict with a list of tensors under 'params' in "
          "param_groups[" +
          std::to_string(g) + "]");
    for (const py::object& param : group_list_.back().params)
      if (!add_param(param.ptr(), state, group_list_.size() - 1)) others.append(param);
  }
  groups_ = py::reinterpret_borrow<py::object>(groups);
  state_ = py::reinterpret_borrow<py::object>(state);
  state_items_.take(state);
  table_.finish();
  for (AdamGpu& gpu : gpus_) gpu.table.finish();
  has_others_ = !others.empty();
  prepared_ = true;
  return others;
}

bool AdamStepper::groups_unchanged(PyObject* groups) {
  if (groups != groups_.ptr() ||
      PyList_GET_SIZE(groups) != static_cast<Py_ssize_t>(group_list_.size()))
    return false;
  for (size_t g = 0; g < group_list_.size(); ++g) {
    Group& group = group_list_[g];
    PyObject* dict = group.dict.ptr();
    if (PyList_GET_ITEM(groups, static_cast<Py_ssize_t>(g)) != dict) return false;
    if (group.readable && (group.may_change_in_place || !group.items.still_holds(dict))) {
      const bool amsgrad = group.options.amsgrad;
      if (!read_options(dict, &group.options, &group.may_change_in_place) ||
          group.options.amsgrad != amsgrad)
        return false;
      group.items.take(dict);
    }
    PyObject* params = find(dict, names().params);
    if (params == nullptr || !PyList_Check(params) ||
        PyList_GET_SIZE(params) != static_cast<Py_ssize_t>(group.params.size()))
      return false;
    for (size_t i = 0; i < group.params.size(); ++i)
      if (PyList_GET_ITEM(params, static_cast<Py_ssize_t>(i)) != group.params[i].ptr())
        return false;
  }
  return true;
}

bool AdamStepper::state_unchanged(PyObject* state) const {
  if (state != state_.ptr() || !state_items_.still_holds(state)) return false;
  for (const Param& param : params_)
    if (param.state && (!param.state_items.still_holds(param.state.ptr()) ||
                        !table_of(param).unchanged(param.row)))
      return false;
  return true;
}

bool AdamStepper::take_gradients() {
  for (const Param& param : params_) {
    const at::Tensor& gradient = THPVariable_Unpack(param.object).unsafeGetTensorImpl()->grad();
    if (!param.state) {
      if (gradient.defined()) return false;
    } else if (!table_of(param).set_gradient(param.row, gradient)) {
      return false;
    }
  }
  return true;
}

bool AdamStepper::step(py::handle optimizer) {
  if (!prepared_ || has_others_ || PyDict_Size(pre_hooks_.ptr()) > 0 ||
      PyDict_Size(post_hooks_.ptr()) > 0)
    return false;
  const py::object attributes = attributes_of(optimizer);
  if (has_hooks(attributes.ptr(), names().pre_hooks) ||
      has_hooks(attributes.ptr(), names().post_hooks))
    return false;
  RECORD_USER_SCOPE(name_);
  return run(attributes.ptr(), 0.0, true);
}

// torch's loop asks every parameter for its gradient, which makes and drops a Python object each.
bool AdamStepper::drop_gradients(py::handle optimizer) {
  if (!prepared_ || has_others_) return false;
  const py::object attributes = attributes_of(optimizer);
  PyObject* groups = find(attributes.ptr(), names().param_groups);
  if (groups == nullptr || !groups_unchanged(groups)) return false;
  RECORD_USER_SCOPE(zero_grad_name_);
  for (const Param& param : params_) THPVariable_Unpack(param.object).mutable_grad().reset();
  return true;
}

py::object AdamStepper::step_without_hooks(py::handle optimizer, double other_squares,
                                           bool others_finite) {
  if (!prepared_ || !run(attributes_of(optimizer).ptr(), other_squares, others_finite))
    return py::none();
  return py::make_tuple(last_.stepped, last_.factor);
}

bool AdamStepper::run(PyObject* attributes, double other_squares, bool others_finite) {
  PyObject* groups = find(attributes, names().param_groups);
  PyObject* state = find(attributes, names().state);
  if (groups == nullptr || state == nullptr || !groups_unchanged(groups) || !state_unchanged(state))
    return false;
  GradientOptions read = read_gradient_options(attributes);
  read.options.other_squares = other_squares;
  read.options.others_finite = others_finite;
  if (!take_gradients()) {
    release_gradients();
    return false;
  }
  last_ = {};
  norm_on_gpu_ = false;
  const bool one_gpu_alone = gpus_.size() == 1 && table_.size() == 0 && !has_others_;
  if (one_gpu_alone) {
    // Everything that a step depends on stays on the GPU; nothing waits for it.
    last_.has_norm = read.options.max_norm >= 0.0 || read.options.skip_nonfinite;
    norm_on_gpu_ = adam_gpu_step(gpus_.front(), options_of_groups(), read.on_gpu());
  } else if (read.read_tensors()) {
    last_.stepped = false;
  } else {
    run_everywhere(read.options, read.on_gpu());
    if (!last_.stepped) ++skipped_;
  }
  release_gradients();
  return true;
}

void AdamStepper::release_gradients() {
  table_.release_gradients();
  for (AdamGpu& gpu : gpus_) gpu.table.release_gradients();
}

// Parameters on several devices: whether to step and the norm are decided here, from all of them.
void AdamStepper::run_everywhere(AdamGradientOptions options, const AdamGpuGradients& on_gpu) {
  if (gpus_.empty()) {
    last_ = run_on_cpu(options);
    return;
  }
  const std::vector<const AdamOptions*> groups = options_of_groups();
  AdamGpuGradients how = on_gpu;
  how.found_inf = at::Tensor();
  how.skip_nonfinite = false;
  std::vector<double> squares(gpus_.size(), 0.0);
  double on_cpu = 0.0, all = options.other_squares;
  if (options.max_norm >= 0.0 || options.skip_nonfinite) {
    bool finite = true;
    on_cpu = table_.gradient_squares(options, &finite);
    options.others_finite = options.others_finite && finite;
    all += on_cpu;
    for (size_t i = 0; i < gpus_.size(); ++i) {
      if (!adam_gpu_measure(gpus_[i], groups, how)) continue;
      const AdamGpuNorm norm = adam_gpu_read(gpus_[i]);
      squares[i] = norm.squares;
      all += norm.squares;
      options.others_finite = options.others_finite && norm.finite;
    }
    if (options.skip_nonfinite && !options.others_finite) {
      last_.stepped = false;
      last_.has_norm = true;
      last_.norm = std::sqrt(all);
      return;
    }
  }
  options.other_squares = all - on_cpu;
  last_ = run_on_cpu(options);
  for (size_t i = 0; i < gpus_.size(); ++i) {
    how.other_squares = all - squares[i];
    adam_gpu_step(gpus_[i], groups, how);
  }
}

AdamOutcome AdamStepper::run_on_cpu(const AdamGradientOptions& options) {
  struct {
    size_t group = SIZE_MAX;
    double step = 0.0;
    cpu::AdamType type{};
    AdamCoefficients coefficients{};
  } last;
  constexpr int64_t kWorthReleasing = 250'000;
  std::optional<py::gil_scoped_release> released;
  if (table_.elements() >= kWorthReleasing) released.emplace();
  return table_.run(options, [&](size_t row, double step) {
    const size_t group = group_of_row_[row];
    const cpu::AdamType type = table_.type(row);
    if (group != last.group || step != last.step || type != last.type)
      last = {group, step, type,
              fold_adam_scalars(adam_scalars(group_list_[group].options, step, type))};
    return last.coefficients;
  });
}

void bind_adam_stepper(py::module_& m) {
  py::class_<AdamStepper>(m, "AdamStepper")
      .def(py::init<std::string, std::string, py::dict, py::dict>(), py::arg("name"),
           py::arg("zero_grad_name"), py::arg("pre_hooks"), py::arg("post_hooks"))
      .def("step", &AdamStepper::step, py::arg("optimizer"))
      .def("drop_gradients", &AdamStepper::drop_gradients, py::arg("optimizer"))
      .def("step_without_hooks", &AdamStepper::step_without_hooks, py::arg("optimizer"),
           py::arg("other_squares"), py::arg("others_finite"))
      .def("prepare", &AdamStepper::prepare, py::arg("optimizer"))
      .def("reset", &AdamStepper::reset)
      .def_property_readonly("has_others", &AdamStepper::has_others)
      .def_property_readonly("grad_norm", &AdamStepper::grad_norm)
      .def_property("skipped_steps", &AdamStepper::skipped_steps, &AdamStepper::set_skipped_steps)
      .def_property_readonly_static("built_for_cuda", [](const py::object&) {
        return adam_gpu_built(c10::Device(c10::kCUDA, 0));
      });
}

}  // namespace fastconv::bindings
