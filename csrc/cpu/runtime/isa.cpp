// SPDX-License-Identifier: MIT
#include "cpu/runtime/isa.h"

#include <cpuid.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace fastconv::cpu {
namespace {

constexpr const char* kIsaNames[kIsaCount] = {"scalar", "avx2", "avx512"};
constexpr int kNotForced = -1;

std::atomic<int> forced_isa{kNotForced};

// XCR0 says which register files the operating system saves on a context switch.
uint64_t read_xcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

Isa detect_best_isa() {
  constexpr uint64_t kXcr0Ymm = 0x6;   // SSE and AVX state
  constexpr uint64_t kXcr0Zmm = 0xe6;  // plus opmask, ZMM_Hi256 and Hi16_ZMM
  constexpr uint32_t kEcx1Fma = 1u << 12;
  constexpr uint32_t kEcx1Osxsave = 1u << 27;
  constexpr uint32_t kEbx7Avx2 = 1u << 5;
  constexpr uint32_t kEbx7Avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F DQ BW VL

  uint32_t eax = 0, ebx1 = 0, ecx1 = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx1, &ecx1, &edx) || !(ecx1 & kEcx1Osxsave)) return Isa::kScalar;
  uint32_t ebx7 = 0, ecx7 = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx7, &ecx7, &edx)) return Isa::kScalar;
  const uint64_t xcr0 = read_xcr0();
  const bool avx2 =
      (xcr0 & kXcr0Ymm) == kXcr0Ymm && (ebx7 & kEbx7Avx2) != 0 && (ecx1 & kEcx1Fma) != 0;
  if (!avx2) return Isa::kScalar;
  const bool avx512 = (xcr0 & kXcr0Zmm) == kXcr0Zmm && (ebx7 & kEbx7Avx512) == kEbx7Avx512;
  return avx512 ? Isa::kAvx512 : Isa::kAvx2;
}

Isa best_isa() {
  static const Isa best = detect_best_isa();
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  return kIsaNames[static_cast<int>(isa)];
}

bool isa_from_name(const char* name, Isa* isa) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(name, kIsaNames[i]) == 0) {
      *isa = static_cast<Isa>(i);
      return true;
    }
  }
  return false;
}

bool isa_available(Isa isa) {
  return static_cast<int>(isa) <= static_cast<int>(best_isa());
}

Isa active_isa() {
  const int forced = forced_isa.load(std::memory_order_relaxed);
  return forced == kNotForced ? best_isa() : static_cast<Isa>(forced);
}

void force_isa(Isa isa) {
  forced_isa.store(static_cast<int>(isa), std::memory_order_relaxed);
}

void clear_forced_isa() {
  forced_isa.store(kNotForced, std::memory_order_relaxed);
}

bool isa_is_forced() {
  return forced_isa.load(std::memory_order_relaxed) != kNotForced;
}

}  // namespace fastconv::cpu
