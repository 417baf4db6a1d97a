// SPDX-License-Identifier: MIT
// The Python module fastconv._C: loading it registers the operators; what it exports by pybind11 is
// what is no operator: build facts, ISA choice, the record of which kernel ran, the machine's peak.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/thread_pool.h"
#include "cpu/peak/peak.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/trace.h"

namespace py = pybind11;
namespace cpu = fastconv::cpu;

namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < cpu::kIsaCount; ++i)
    if (cpu::isa_available(static_cast<cpu::Isa>(i)))
      names.emplace_back(cpu::isa_name(static_cast<cpu::Isa>(i)));
  return names;
}

void force_cpu_isa(const std::optional<std::string>& name) {
  if (!name.has_value()) {
    cpu::clear_forced_isa();
    return;
  }
  cpu::Isa isa{};
  if (!cpu::isa_from_name(name->c_str(), &isa))
    throw py::value_error("force_cpu_isa: expected one of scalar, avx2, avx512, got '" + *name +
                          "'");
  if (!cpu::isa_available(isa))
    throw py::value_error("force_cpu_isa: expected an instruction set this machine has, got '" +
                          *name + "'");
  cpu::force_isa(isa);
}

std::optional<std::string> forced_cpu_isa() {
  if (!cpu::isa_is_forced()) return std::nullopt;
  return cpu::isa_name(cpu::active_isa());
}

using RecordOfKernel = std::pair<std::string, std::string>;  // algorithm, ISA

std::optional<RecordOfKernel> record_or_none(const cpu::KernelRecord& record) {
  if (record.algorithm == nullptr) return std::nullopt;
  return RecordOfKernel{record.algorithm, cpu::isa_name(record.isa)};
}

std::optional<RecordOfKernel> last_record(const std::optional<std::string>& kernel) {
  if (!kernel.has_value()) return record_or_none(cpu::last_record());
  std::string known;
  for (int i = 0; i < static_cast<int>(cpu::KernelId::kCount); ++i) {
    const auto id = static_cast<cpu::KernelId>(i);
    if (*kernel == cpu::kernel_name(id)) return record_or_none(cpu::last_record(id));
    known += (i == 0 ? "" : ", ") + std::string(cpu::kernel_name(id));
  }
  throw py::value_error("last_used: expected a kernel among " + known + ", got '" + *kernel + "'");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  fastconv::bindings::install_torch_thread_pool();
  m.def("available_isas", &available_isas);
  m.def("cpu_isa", [] { return std::string(cpu::isa_name(cpu::active_isa())); });
  m.def("force_cpu_isa", &force_cpu_isa, py::arg("name").none(true));
  m.def("forced_cpu_isa", &forced_cpu_isa);
  m.def(
      "fma_peak", [] { return cpu::measure_fma_peak(cpu::active_isa()); },
      py::call_guard<py::gil_scoped_release>());
  m.def("last_record", &last_record, py::arg("kernel").none(true));
}
