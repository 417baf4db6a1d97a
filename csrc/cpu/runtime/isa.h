// SPDX-License-Identifier: MIT
// Which instruction set the kernels run on. Detected once from CPUID and XGETBV (the operating
// system must save the wide registers too), overridden by FASTCONV_ISA or force_isa().
#pragma once

namespace fastconv::cpu {

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

inline constexpr int kIsaCount = 3;

const char* isa_name(Isa isa);

// Sets *isa and returns true when `name` is one of scalar, avx2, avx512.
bool isa_from_name(const char* name, Isa* isa);

// True when this machine and its operating system can run `isa`.
bool isa_available(Isa isa);

// The ISA kernels use now: the forced one if any, else the best available.
Isa active_isa();

// Precondition: isa_available(isa).
void force_isa(Isa isa);
void clear_forced_isa();
bool isa_is_forced();

}  // namespace fastconv::cpu
