// SPDX-License-Identifier: MIT
// Memory for kernels under test: filled with 0xff (NaN in every float type, -1 as an integer), with
// unmapped pages on both sides, and with a filled gap where the size does not end at a page.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastconv::cuda_shim {

enum class Flush : int { kEnd, kStart };  // which end lies against unmapped memory

// The start is aligned to `alignment`, a power of two up to 4096; with kEnd less than `alignment`
// bytes lie between the end and the unmapped page. Name: at most 31 characters are kept.
void* guarded_allocate(size_t bytes, size_t alignment, Flush flush, const char* name);

// Returns false when somebody wrote into the gap.
bool guarded_free(void* pointer);
bool guarded_intact(const void* pointer);

// Writes where `address` lies with respect to the nearest buffer into text, for messages; callable
// from a signal handler.
void describe_address(const void* address, char* text, size_t size);

}  // namespace fastconv::cuda_shim
