// SPDX-License-Identifier: MIT
// Operators without a CUDA kernel answer CUDA tensors with one clear sentence instead of a
// dispatcher dump: all of them in a CPU-only build. Found by asking the dispatcher, so that an
// operator that gets a CUDA kernel needs no change here.
#include "bindings/no_cuda.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string_view>

namespace fastconv::bindings {
namespace {

#ifdef FASTCONV_WITH_CUDA
constexpr const char* kReason = "this operator of fastconv has no CUDA kernel";
#else
constexpr const char* kReason = "this build of fastconv has no CUDA kernels";
#endif

void refuse_cuda(const c10::OperatorHandle& op, torch::jit::Stack* /*stack*/) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.operator_name().name,
                              ": expected CPU tensors, got CUDA tensors; ", kReason);
}

}  // namespace

void refuse_cuda_without_kernels() {
  static torch::Library library(torch::Library::IMPL, "fastconv", c10::DispatchKey::CUDA, __FILE__,
                                __LINE__);
  constexpr std::string_view kPrefix = "fastconv::";
  c10::Dispatcher& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.name.compare(0, kPrefix.size(), kPrefix) != 0) continue;
    const c10::OperatorHandle op = dispatcher.findSchemaOrThrow(name.name.c_str(), "");
    if (op.hasKernelForDispatchKey(c10::DispatchKey::CPU) &&
        !op.hasKernelForDispatchKey(c10::DispatchKey::CUDA))
      library.impl(name.name.c_str() + kPrefix.size(),
                   torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>());
  }
}

}  // namespace fastconv::bindings
