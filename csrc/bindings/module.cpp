// SPDX-License-Identifier: MIT
// The Python module fastconv._C: loading it registers the operators; what it exports by pybind11 is
// what is no operator: build facts, ISA choice, the record of which kernel ran, the machine's peak.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/adam_stepper.h"
#include "bindings/block_cache.h"
#include "bindings/direct_calls.h"
#include "bindings/no_cuda.h"
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

cpu::KernelId kernel_from_name(const std::string& caller, const std::string& name) {
  std::string known;
  for (int i = 0; i < static_cast<int>(cpu::KernelId::kCount); ++i) {
    const auto id = static_cast<cpu::KernelId>(i);
    if (name == cpu::kernel_name(id)) return id;
    known += (i == 0 ? "" : ", ") + std::string(cpu::kernel_name(id));
  }
  throw py::value_error(caller + ": expected a kernel among " + known + ", got '" + name + "'");
}

std::optional<RecordOfKernel> last_record(const std::optional<std::string>& kernel) {
  if (!kernel.has_value()) return record_or_none(cpu::last_record());
  return record_or_none(cpu::last_record(kernel_from_name("last_used", *kernel)));
}

// Of every kernel that has run: its algorithm and instruction set.
std::map<std::string, RecordOfKernel> all_records() {
  std::map<std::string, RecordOfKernel> records;
  for (int i = 0; i < static_cast<int>(cpu::KernelId::kCount); ++i) {
    const auto id = static_cast<cpu::KernelId>(i);
    if (const auto record = record_or_none(cpu::last_record(id)))
      records.emplace(cpu::kernel_name(id), *record);
  }
  return records;
}

std::vector<std::string> algorithms(const std::string& kernel) {
  std::vector<std::string> names;
  for (const char* const* name = cpu::kernel_algorithms(kernel_from_name("algorithms", kernel));
       *name != nullptr; ++name)
    names.emplace_back(*name);
  return names;
}

void force_algorithm(const std::string& kernel, const std::optional<std::string>& algorithm) {
  const cpu::KernelId id = kernel_from_name("force_algorithm", kernel);
  if (!algorithm.has_value()) return cpu::force_algorithm(id, nullptr);
  std::string known;
  for (const char* const* name = cpu::kernel_algorithms(id); *name != nullptr; ++name) {
    if (*algorithm == *name) return cpu::force_algorithm(id, *name);
    known += (known.empty() ? "" : ", ") + std::string(*name);
  }
  throw py::value_error("force_algorithm: expected an algorithm of " + kernel + " among [" + known +
                        "], got '" + *algorithm + "'");
}

std::optional<std::string> forced_algorithm(const std::string& kernel) {
  const char* name = cpu::forced_algorithm(kernel_from_name("force_algorithm", kernel));
  if (name == nullptr) return std::nullopt;
  return name;
}

py::dict memory_cache_info() {
  const fastconv::bindings::BlockCacheInfo info = fastconv::bindings::block_cache_info();
  py::dict facts;
  facts["limit_bytes"] = info.limit_bytes;
  facts["cached_bytes"] = info.cached_bytes;
  facts["used_bytes"] = info.used_bytes;
  facts["hits"] = info.hits;
  facts["misses"] = info.misses;
  return facts;
}

void set_memory_cache_limit(int64_t bytes) {
  if (bytes < 0)
    throw py::value_error("set_memory_cache_limit: expected at least 0 bytes, got " +
                          std::to_string(bytes));
  fastconv::bindings::set_block_cache_limit(bytes);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  fastconv::bindings::install_torch_thread_pool();
  fastconv::bindings::refuse_cuda_without_kernels();
  m.def("available_isas", &available_isas);
  m.def("cpu_isa", [] { return std::string(cpu::isa_name(cpu::active_isa())); });
  m.def("force_cpu_isa", &force_cpu_isa, py::arg("name").none(true));
  m.def("forced_cpu_isa", &forced_cpu_isa);
  m.def(
      "fma_peak", [] { return cpu::measure_fma_peak(cpu::active_isa()); },
      py::call_guard<py::gil_scoped_release>());
  m.def("last_record", &last_record, py::arg("kernel").none(true));
  m.def("all_records", &all_records);
  m.def("forget_records", &cpu::forget_records);
  m.def("memory_cache_info", &memory_cache_info);
  m.def("set_memory_cache_limit", &set_memory_cache_limit, py::arg("bytes"));
  m.def("empty_memory_cache", &fastconv::bindings::empty_block_cache);
  m.def("algorithms", &algorithms, py::arg("kernel"));
  m.def("force_algorithm", &force_algorithm, py::arg("kernel"), py::arg("algorithm").none(true));
  m.def("forced_algorithm", &forced_algorithm, py::arg("kernel"));
  fastconv::bindings::bind_adam_stepper(m);
  fastconv::bindings::bind_direct_calls(m);
}
