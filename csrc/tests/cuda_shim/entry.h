// SPDX-License-Identifier: MIT
// The functions that python_tests/cuda_shim.py calls by name: `FC_ENTRY int
// fastconv_<launcher>(...)` in <op>_entry.cpp, plain numbers and pointers only, returning the
// launcher's cudaError_t.
#pragma once

#define FC_ENTRY extern "C" __attribute__((visibility("default")))
