// SPDX-License-Identifier: MIT
#include "bindings/direct_calls.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <string_view>
#include <vector>

#include "bindings/lstm_layer.h"
#include "bindings/ops.h"

namespace py = pybind11;

namespace fastconv::bindings {
namespace {

// Reads arguments one after the other; `plain` turns false at the first that is not what it seems.
class PlainArguments {
 public:
  explicit PlainArguments(PyObject* const* args) : next_(args) {}

  bool plain = !at::impl::torch_function_mode_enabled();

  const Tensor& tensor() { return tensor_of(*next_++); }

  Tensor optional_tensor() {
    PyObject* value = *next_++;
    return value == Py_None ? Tensor() : tensor_of(value);
  }

  std::vector<Tensor> tensors() {
    PyObject* value = *next_++;
    std::vector<Tensor> list;
    if (!PyTuple_CheckExact(value) && !PyList_CheckExact(value)) {
      plain = false;
      return list;
    }
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(value);
    list.reserve(size);
    for (Py_ssize_t i = 0; i < size; ++i)
      list.push_back(tensor_of(PySequence_Fast_GET_ITEM(value, i)));
    return list;
  }

  // One of a module's parameters; as a rule of the class Parameter.
  Tensor parameter(PyObject* dict, PyObject* name) {
    PyObject* value = PyDict_GetItemWithError(dict, name);
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    plain = plain && value != nullptr && value != Py_None;
    return plain ? tensor_of(value) : Tensor();
  }

  int64_t integer() { return integer_of(*next_++); }

  // One integer for both dimensions, or a tuple of two; None, where it may be, is an empty list.
  at::IntArrayRef pair(std::array<int64_t, 2>& memory, bool may_be_none = false) {
    PyObject* value = *next_++;
    if (may_be_none && value == Py_None) return {};
    if (PyTuple_CheckExact(value) && PyTuple_GET_SIZE(value) == 2) {
      memory = {integer_of(PyTuple_GET_ITEM(value, 0)), integer_of(PyTuple_GET_ITEM(value, 1))};
    } else {
      memory[0] = memory[1] = integer_of(value);
    }
    return memory;
  }

  double number() {
    PyObject* value = *next_++;
    plain = plain && PyFloat_CheckExact(value);
    return plain ? PyFloat_AS_DOUBLE(value) : 0.0;
  }

  // Lives as long as the argument.
  std::string_view name() {
    PyObject* value = *next_++;
    plain = plain && PyUnicode_CheckExact(value);
    if (!plain) return {};
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value, &size);
    if (text == nullptr) throw py::error_already_set();
    return {text, static_cast<size_t>(size)};
  }

 private:
  const Tensor& tensor_of(PyObject* value) {
    static const Tensor none;
    plain = plain && THPVariable_CheckExact(value);
    return plain ? THPVariable_Unpack(value) : none;
  }

  int64_t integer_of(PyObject* value) {
    if (!plain || !PyLong_CheckExact(value)) {
      plain = false;
      return 0;
    }
    int overflow = 0;
    const int64_t result = PyLong_AsLongLongAndOverflow(value, &overflow);
    plain = overflow == 0;
    return result;
  }

  PyObject* const* next_;
};

// What the calls of a convolution begin with. The options are views of `memory`.
struct ConvArguments {
  explicit ConvArguments(PlainArguments* in)
      : input(in->tensor()),
        weight(in->tensor()),
        bias(in->optional_tensor()),
        options{in->pair(memory[0]), in->pair(memory[1]), in->pair(memory[2]), in->integer()} {}
  ConvArguments(const ConvArguments&) = delete;
  ConvArguments& operator=(const ConvArguments&) = delete;

  const Tensor& input;
  const Tensor& weight;
  const Tensor bias;
  std::array<int64_t, 2> memory[3];
  const Conv2dOptions options;
};

PyObject* not_implemented() {
  Py_INCREF(Py_NotImplemented);
  return Py_NotImplemented;
}

bool boolean(PyObject* value) {
  return value == Py_True;
}

PyObject* conv2d(PyObject* /*module*/, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 7) return not_implemented();
  PlainArguments in(args);
  const ConvArguments conv(&in);
  if (!in.plain) return not_implemented();
  Tensor output;
  {
    const py::gil_scoped_release no_gil;
    output = call_conv2d(conv.input, conv.weight, if_defined(conv.bias), conv.options);
  }
  return THPVariable_Wrap(std::move(output));
  END_HANDLE_TH_ERRORS
}

PyObject* conv_block2d(PyObject* /*module*/, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 12) return not_implemented();
  PlainArguments in(args);
  const ConvArguments conv(&in);
  const std::string_view activation = in.name();
  const double slope = in.number();
  const std::string_view pool = in.name();
  std::array<int64_t, 2> memory[2];
  const at::IntArrayRef size = in.pair(memory[0]), step = in.pair(memory[1], true);
  if (!in.plain) return not_implemented();
  Tensor output;
  {
    const py::gil_scoped_release no_gil;
    output = call_conv_block2d(conv.input, conv.weight, if_defined(conv.bias), conv.options,
                               activation, slope, pool, size, step);
  }
  return THPVariable_Wrap(std::move(output));
  END_HANDLE_TH_ERRORS
}

PyObject* mlp(PyObject* /*module*/, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 5) return not_implemented();
  PlainArguments in(args);
  const Tensor& input = in.tensor();
  const std::vector<Tensor> weights = in.tensors(), biases = in.tensors();
  const std::string_view activation = in.name();
  const double slope = in.number();
  if (!in.plain) return not_implemented();
  Tensor output;
  {
    const py::gil_scoped_release no_gil;
    output = call_mlp(input, weights, biases, activation, slope);
  }
  return THPVariable_Wrap(std::move(output));
  END_HANDLE_TH_ERRORS
}

template <class... Tensors>
PyObject* tuple_of(Tensors&&... tensors) {
  py::tuple result(sizeof...(tensors));
  Py_ssize_t i = 0;
  const auto add = [&](Tensor&& tensor) {
    PyObject* item = THPVariable_Wrap(std::move(tensor));
    if (item == nullptr) throw py::error_already_set();
    PyTuple_SET_ITEM(result.ptr(), i++, item);
  };
  (add(std::move(tensors)), ...);
  return result.release().ptr();
}

PyObject* lstm_layer(PyObject* /*module*/, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 11 || !PyBool_Check(args[10])) return not_implemented();
  PlainArguments in(args);
  const Tensor& input = in.tensor();
  const Tensor h = in.optional_tensor(), c = in.optional_tensor();
  const Tensor &weight_ih = in.tensor(), &weight_hh = in.tensor();
  const Tensor bias_ih = in.optional_tensor(), bias_hh = in.optional_tensor(),
               weight_hr = in.optional_tensor(), lengths = in.optional_tensor(),
               batch_sizes = in.optional_tensor();
  if (!in.plain) return not_implemented();
  Tensor3 results;
  {
    const py::gil_scoped_release no_gil;
    results = call_lstm_layer({input, if_defined(h), if_defined(c), weight_ih, weight_hh,
                               if_defined(bias_ih), if_defined(bias_hh), if_defined(weight_hr),
                               if_defined(lengths), if_defined(batch_sizes), boolean(args[10])});
  }
  auto& [output, h_n, c_n] = results;
  return tuple_of(output, h_n, c_n);
  END_HANDLE_TH_ERRORS
}

// input, h_0, c_0, lengths, the dict of a module's parameters, their names in order, has_biases,
// layers, bidirectional, batch_first.
PyObject* lstm(PyObject* /*module*/, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 10 || !PyDict_CheckExact(args[4]) || !PyList_CheckExact(args[5]))
    return not_implemented();
  PlainArguments in(args);
  const Tensor& input = in.tensor();
  const Tensor h = in.optional_tensor(), c = in.optional_tensor(), lengths = in.optional_tensor();
  std::vector<Tensor> parameters;
  const Py_ssize_t size = PyList_GET_SIZE(args[5]);
  parameters.reserve(size);
  for (Py_ssize_t i = 0; i < size && in.plain; ++i)
    parameters.push_back(in.parameter(args[4], PyList_GET_ITEM(args[5], i)));
  PlainArguments options(args + 7);
  const int64_t layers = options.integer();
  if (!in.plain || !options.plain) return not_implemented();
  std::optional<Tensor3> results;
  {
    const py::gil_scoped_release no_gil;
    results = lstm_stack({input, if_defined(h), if_defined(c), parameters, if_defined(lengths),
                          boolean(args[6]), layers, boolean(args[8]), boolean(args[9])});
  }
  if (!results.has_value()) return not_implemented();
  auto& [output, h_n, c_n] = *results;
  return tuple_of(output, h_n, c_n);
  END_HANDLE_TH_ERRORS
}

PyObject* lstm_cell(PyObject* /*module*/, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 7) return not_implemented();
  PlainArguments in(args);
  const Tensor& input = in.tensor();
  const Tensor h = in.optional_tensor(), c = in.optional_tensor();
  const Tensor &weight_ih = in.tensor(), &weight_hh = in.tensor();
  const Tensor bias_ih = in.optional_tensor(), bias_hh = in.optional_tensor();
  if (!in.plain) return not_implemented();
  Tensor2 results;
  {
    const py::gil_scoped_release no_gil;
    results = call_lstm_cell(input, if_defined(h), if_defined(c), weight_ih, weight_hh,
                             if_defined(bias_ih), if_defined(bias_hh));
  }
  auto& [h_n, c_n] = results;
  return tuple_of(h_n, c_n);
  END_HANDLE_TH_ERRORS
}

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
void bind(py::module_& m, const char* name) {
  static PyMethodDef definition{name, reinterpret_cast<PyCFunction>(function), METH_FASTCALL,
                                nullptr};
  m.attr(name) = py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr));
}

}  // namespace

void bind_direct_calls(py::module_& m) {
  bind<&conv2d>(m, "conv2d");
  bind<&conv_block2d>(m, "conv_block2d");
  bind<&mlp>(m, "mlp");
  bind<&lstm>(m, "lstm");
  bind<&lstm_layer>(m, "lstm_layer");
  bind<&lstm_cell>(m, "lstm_cell");
}

}  // namespace fastconv::bindings
