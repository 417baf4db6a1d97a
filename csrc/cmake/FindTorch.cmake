# SPDX-License-Identifier: MIT
# Finds the torch of the running Python (Python_EXECUTABLE) and defines the target torch::torch.
#
# Used in place of torch's own TorchConfig.cmake, because that one refuses to configure a CPU-only
# extension against a CUDA build of torch on a machine without a CUDA toolkit (it searches for the
# toolkit unconditionally), and because it compiles every consumer with torch's own warning flags.
#
# Beside it torch::c10_cuda, for CUDA builds of torch: streams and memory of torch's own.
#
# Sets Torch_FOUND, Torch_VERSION, Torch_CUDA_VERSION (empty for a CPU build of torch).

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
    "import os, torch; r = os.path.dirname(torch.__file__); print(torch.__version__, torch.version.cuda or '-', int(torch._C._GLIBCXX_USE_CXX11_ABI), r, sep='\\n')"
  OUTPUT_VARIABLE _torch_facts
  ERROR_VARIABLE _torch_error
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE _torch_status)

if(NOT _torch_status EQUAL 0)
  message(FATAL_ERROR
    "fastconv: 'import torch' failed in ${Python_EXECUTABLE}; install torch 2.13 or newer first.\n${_torch_error}")
endif()

string(REPLACE "\n" ";" _torch_facts "${_torch_facts}")
list(GET _torch_facts 0 Torch_VERSION)
list(GET _torch_facts 1 Torch_CUDA_VERSION)
list(GET _torch_facts 2 _torch_abi)
list(GET _torch_facts 3 _torch_root)
if(Torch_CUDA_VERSION STREQUAL "-")
  set(Torch_CUDA_VERSION "")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Torch REQUIRED_VARS _torch_root VERSION_VAR Torch_VERSION)

if(NOT TARGET torch::torch)
  add_library(torch::torch INTERFACE IMPORTED)
  target_include_directories(torch::torch SYSTEM INTERFACE
    "${_torch_root}/include" "${_torch_root}/include/torch/csrc/api/include")
  target_compile_definitions(torch::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${_torch_abi})
  foreach(_lib c10 torch_cpu torch torch_python)
    target_link_libraries(torch::torch INTERFACE "${_torch_root}/lib/lib${_lib}.so")
  endforeach()
endif()
if(Torch_CUDA_VERSION AND NOT TARGET torch::c10_cuda)
  add_library(torch::c10_cuda INTERFACE IMPORTED)
  target_link_libraries(torch::c10_cuda INTERFACE "${_torch_root}/lib/libc10_cuda.so")
endif()
