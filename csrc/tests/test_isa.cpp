// SPDX-License-Identifier: MIT
#include <string>

#include "check.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

void test_names() {
  for (int i = 0; i < kIsaCount; ++i) {
    const auto isa = static_cast<Isa>(i);
    Isa found{};
    CHECK(isa_from_name(isa_name(isa), &found) && found == isa);
  }
  Isa untouched = Isa::kAvx2;
  for (const char* name : {"", "AVX2", "avx", "avx2 ", "sse", "avx5120"})
    CHECK_WITH(!isa_from_name(name, &untouched) && untouched == Isa::kAvx2, name);
}

void test_availability() {
  CHECK(isa_available(Isa::kScalar));
  CHECK(!isa_available(Isa::kAvx512) || isa_available(Isa::kAvx2));
#if defined(__GNUC__)
  // The compiler's runtime asks CPUID and XGETBV on its own.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  CHECK(isa_available(Isa::kAvx2) == avx2);
  CHECK(isa_available(Isa::kAvx512) == avx512);
#endif
}

void test_forcing() {
  const Isa best = active_isa();
  CHECK(!isa_is_forced());
  CHECK(isa_available(best));
  force_isa(Isa::kScalar);
  CHECK(isa_is_forced() && active_isa() == Isa::kScalar);
  clear_forced_isa();
  CHECK(!isa_is_forced() && active_isa() == best);
}

void test_tables() {
  testing::for_each_isa([](Isa isa) {
    const GemmKernels& gemm = gemm_kernels(isa);
    const int64_t lanes = isa == Isa::kAvx512 ? 16 : isa == Isa::kAvx2 ? 8 : 1;
    CHECK(gemm.lanes == lanes);
    for (const GemmFamily* family :
         {&gemm.packed_tall, &gemm.packed_wide, &gemm.panel_wide, &gemm.panel_narrow})
      for (int64_t rows = 1; rows <= family->max_rows; ++rows)
        CHECK(family->by_rows[rows - 1] != nullptr);
    CHECK(conv2d_kernels(isa).pack_panel != nullptr);
    CHECK(conv2d_kernels(isa).copy_block != nullptr);
  });
}

void test_trace() {
  const auto kernels = static_cast<int>(KernelId::kCount);
  CHECK(last_record().algorithm == nullptr);
  for (int i = 0; i < kernels; ++i) {
    const auto kernel = static_cast<KernelId>(i);
    CHECK(last_record(kernel).algorithm == nullptr);
    for (int j = 0; j < i; ++j)
      CHECK(std::string(kernel_name(kernel)) != kernel_name(static_cast<KernelId>(j)));
  }
  record_kernel(KernelId::kConv2dForward, "first", Isa::kAvx2);
  record_kernel(KernelId::kConv2dGradInput, "second", Isa::kScalar);
  CHECK(std::string(last_record(KernelId::kConv2dForward).algorithm) == "first");
  CHECK(last_record(KernelId::kConv2dForward).isa == Isa::kAvx2);
  CHECK(std::string(last_record().algorithm) == "second");
  CHECK(last_record().isa == Isa::kScalar);
  CHECK(last_record(KernelId::kConv2dGradWeight).algorithm == nullptr);
  forget_records();
  CHECK(last_record().algorithm == nullptr);
  CHECK(last_record(KernelId::kConv2dForward).algorithm == nullptr);
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  fastconv::cpu::test_names();
  fastconv::cpu::test_availability();
  fastconv::cpu::test_forcing();
  fastconv::cpu::test_tables();
  fastconv::cpu::test_trace();
  return fastconv::testing::report();
}
