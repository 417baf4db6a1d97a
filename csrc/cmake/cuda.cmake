# SPDX-License-Identifier: MIT
# Whether this build has CUDA kernels, and the library that holds them. Decided by the toolkit and
# the torch build, never by a visible GPU: build machines have none.
#
# Reads FASTCONV_CUDA (AUTO, ON, OFF), FASTCONV_CUDA_ARCHITECTURES and Torch_CUDA_VERSION; sets
# FASTCONV_WITH_CUDA, FASTCONV_CUDA_BINDINGS and, when on, defines the target fastconv_cuda.

# Kernels: raw pointers, sizes and a stream; no torch. Headers are csrc/cuda/**/*.h and *.cuh.
set(FASTCONV_CUDA_KERNELS
  csrc/cuda/adam/adam_norm.cu
  csrc/cuda/adam/adam_update.cu
  csrc/cuda/conv2d/conv2d.cu
  csrc/cuda/conv2d/conv2d_depthwise.cu
  csrc/cuda/conv2d/conv2d_depthwise_grad_weight.cu
  csrc/cuda/conv2d/conv2d_direct.cu
  csrc/cuda/conv2d/conv2d_gemm_bfloat16.cu
  csrc/cuda/conv2d/conv2d_gemm_float16.cu
  csrc/cuda/conv2d/conv2d_gemm_tf32.cu
  csrc/cuda/conv2d/conv2d_gemm_tf32x3.cu
  csrc/cuda/conv2d/conv2d_general.cu
  csrc/cuda/conv2d/conv2d_grad_weight_bfloat16.cu
  csrc/cuda/conv2d/conv2d_grad_weight_float16.cu
  csrc/cuda/conv2d/conv2d_grad_weight_implicit.cu
  csrc/cuda/conv2d/conv2d_grad_weight_tf32.cu
  csrc/cuda/conv2d/conv2d_grad_weight_tf32x3.cu
  csrc/cuda/conv2d/conv2d_implicit.cu
  csrc/cuda/conv2d/conv2d_layout.cu
  csrc/cuda/conv2d/conv2d_partials.cu
  csrc/cuda/conv_block2d/conv_block2d_backward.cu
  csrc/cuda/conv_block2d/conv_block2d_direct.cu
  csrc/cuda/conv_block2d/conv_block2d_forward.cu
  csrc/cuda/conv_block2d/conv_block2d_grad_weight.cu
  csrc/cuda/pool2d/pool2d_backward.cu
  csrc/cuda/pool2d/pool2d_choice.cu
  csrc/cuda/pool2d/pool2d_forward.cu
  csrc/cuda/pool2d/pool2d_offsets.cu
  csrc/cuda/gemm/gemm.cu
  csrc/cuda/lstm/lstm_backward.cu
  csrc/cuda/lstm/lstm_forward.cu
  csrc/cuda/lstm/lstm_persistent.cu
  csrc/cuda/lstm/lstm_persistent_mma.cu
  csrc/cuda/lstm/lstm_plan.cu
  csrc/cuda/lstm/lstm_rows.cu
)

# What hands tensors to them: compiled only where there are kernels to call.
set(FASTCONV_CUDA_BINDINGS
  csrc/bindings/adam_gpu_cuda.cpp
  csrc/bindings/conv2d_cuda.cpp
  csrc/bindings/conv_block2d_cuda.cpp
  csrc/bindings/cuda_call.cpp
  csrc/bindings/mlp_cuda.cpp
  csrc/bindings/pool2d_cuda.cpp
  csrc/bindings/lstm_cuda.cpp
)

set(FASTCONV_WITH_CUDA OFF)
if(FASTCONV_CUDA STREQUAL "OFF")
  return()
endif()

# The compiler and torch must be of one CUDA major version, because both use one runtime library.
find_program(FASTCONV_NVCC NAMES "$ENV{CUDACXX}" nvcc HINTS "$ENV{CUDA_HOME}" PATH_SUFFIXES bin)
set(_missing "")
if(NOT Torch_CUDA_VERSION)
  set(_missing "torch ${Torch_VERSION} is a build without CUDA")
elseif(NOT FASTCONV_NVCC)
  set(_missing "nvcc was not found")
else()
  execute_process(COMMAND "${FASTCONV_NVCC}" --version OUTPUT_VARIABLE _nvcc_version)
  string(REGEX MATCH "release ([0-9]+)\\.[0-9]+" _nvcc_release "${_nvcc_version}")
  set(_nvcc_major "${CMAKE_MATCH_1}")
  string(REGEX MATCH "^[0-9]+" _torch_major "${Torch_CUDA_VERSION}")
  if(NOT _nvcc_major STREQUAL _torch_major)
    set(_missing "torch ${Torch_VERSION} is built with CUDA ${Torch_CUDA_VERSION}, nvcc is ${_nvcc_release}")
  endif()
endif()
if(_missing)
  if(FASTCONV_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "fastconv: FASTCONV_CUDA=ON needs nvcc and a torch built with its CUDA version, but ${_missing}")
  endif()
  message(STATUS "fastconv: no CUDA kernels in this build: ${_missing}")
  return()
endif()
if(NOT FASTCONV_CUDA_KERNELS)
  message(STATUS "fastconv: no CUDA kernels in this build: there are none yet")
  return()
endif()

set(FASTCONV_WITH_CUDA ON)
set(CMAKE_CUDA_COMPILER "${FASTCONV_NVCC}")
set(CMAKE_CUDA_ARCHITECTURES "${FASTCONV_CUDA_ARCHITECTURES}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# The runtime library that torch has loaded: streams, errors and captured graphs belong to one.
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# GPUs older than the build are refused by name: the oldest architecture, and the list for messages.
string(REGEX MATCHALL "[0-9]+" _numbers "${FASTCONV_CUDA_ARCHITECTURES}")
list(SORT _numbers COMPARE NATURAL)
list(GET _numbers 0 _oldest)
list(JOIN _numbers " " FASTCONV_CUDA_ARCHITECTURE_NAMES)

add_library(fastconv_cuda STATIC ${FASTCONV_CUDA_KERNELS})
target_include_directories(fastconv_cuda PUBLIC csrc)
# Spills are for csrc/tests/cuda_budgets to refuse: as a warning (--warn-on-spills) they would stop
# a user's build because the next compiler hands out registers in another way.
target_compile_options(fastconv_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra>")
target_link_libraries(fastconv_cuda PUBLIC CUDA::cudart)
set_source_files_properties(csrc/bindings/cuda_call.cpp PROPERTIES COMPILE_DEFINITIONS
  "FASTCONV_CUDA_OLDEST=${_oldest};FASTCONV_CUDA_ARCHITECTURES=\"${FASTCONV_CUDA_ARCHITECTURE_NAMES}\"")
