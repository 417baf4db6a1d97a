// SPDX-License-Identifier: MIT
#include "cpu/runtime/denormals.h"

namespace fastconv::cpu {
namespace {

constexpr uint32_t kDenormalsAreZero = 1u << 6;
constexpr uint32_t kFlushToZero = 1u << 15;

uint32_t read_mxcsr() {
  uint32_t value;
  __asm__ volatile("stmxcsr %0" : "=m"(value) : : "memory");
  return value;
}

void write_mxcsr(uint32_t value) {
  __asm__ volatile("ldmxcsr %0" : : "m"(value) : "memory");
}

}  // namespace

FlushDenormals::FlushDenormals() : before_(read_mxcsr()) {
  write_mxcsr(before_ | kDenormalsAreZero | kFlushToZero);
}

FlushDenormals::~FlushDenormals() {
  write_mxcsr(before_);
}

}  // namespace fastconv::cpu
