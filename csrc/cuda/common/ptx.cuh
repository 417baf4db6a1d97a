// SPDX-License-Identifier: MIT
// Every inline-asm instruction of the kernels. Under FASTCONV_CUDA_SHIM the same functions run in
// the emulator (csrc/tests/cuda_shim). The asm text itself is what the emulator cannot check: keep
// operand orders next to the layouts below.
//
// Fragments of a warp, lane = 4 g + t, one register holds one 32-bit word:
//   m16n8k16, 16-bit:  a[i] half j: row g + 8 (i % 2), k 2 t + j + 8 (i / 2)
//                      b[i] half j: k 2 t + j + 8 i, column g
//   m16n8k8, tf32:     a[i]: row g + 8 (i % 2), k t + 4 (i / 2);   b[i]: k t + 4 i, column g
//   d of both:         d[i]: row g + 8 (i / 2), column 2 t + i % 2
// ldmatrix_x4: lane l passes the address of row l % 8 of 8x8 matrix l / 8 (16 bytes, aligned);
// r[m] gets elements 2 t and 2 t + 1 of row g of matrix m; transposed: of column g.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/common/seam.h"

#ifdef FASTCONV_CUDA_SHIM
#define FC_EMULATED 1
#else
#define FC_EMULATED 0
#endif

namespace fastconv::cuda {

// Operand types of the 16-bit mma.
struct Bf16 {};
struct Half {};

#if !FC_EMULATED
// The address of shared memory as PTX's .shared instructions want it.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// Starts copying 16 bytes from global to shared memory, both aligned to 16 bytes; bytes from
// valid_bytes (0 to 16) on are zeros, and not read. With 0 the source may be any global pointer.
__device__ inline void cp_async_16(void* shared, const void* global, int valid_bytes FC_WHERE) {
#if FC_EMULATED
  cuda_shim::cp_async_16(shared, global, valid_bytes, where);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid_bytes)
               : "memory");
#else
  auto* bytes = static_cast<unsigned char*>(shared);
  const auto* source = static_cast<const unsigned char*>(global);
  if (valid_bytes == 16) {
    *reinterpret_cast<uint4*>(bytes) = *reinterpret_cast<const uint4*>(source);
  } else {
    for (int i = 0; i < 16; ++i) bytes[i] = i < valid_bytes ? source[i] : 0;
  }
#endif
}

// Closes the group of copies that this thread started since the last commit.
__device__ inline void cp_async_commit(FC_WHERE_ONLY) {
#if FC_EMULATED
  cuda_shim::cp_async_commit(where);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `Pending` of this thread's latest groups are unfinished. Other threads see
// the copies only after a barrier.
template <int Pending>
__device__ inline void cp_async_wait(FC_WHERE_ONLY) {
#if FC_EMULATED
  cuda_shim::cp_async_wait(Pending, where);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements; every lane of the warp takes part.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row FC_WHERE) {
#if FC_EMULATED
  cuda_shim::ldmatrix_x4(r, shared_row, false, where);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
#endif
}

__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row FC_WHERE) {
#if FC_EMULATED
  cuda_shim::ldmatrix_x4(r, shared_row, true, where);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
#endif
}

// mma.sync with float32 sums, d += a b, in one of its forms: all have the same registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define FC_MMA_SYNC(form) asm volatile("trap;")  // launchers never choose tensor cores there
#else
#define FC_MMA_SYNC(form)                                                         \
  asm volatile("mma.sync.aligned." form                                           \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

// d += a b, 16 x 8 x 16.
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    Bf16 FC_WHERE) {
#if FC_EMULATED
  cuda_shim::mma_m16n8k16_bf16(d, a, b, where);
#else
  FC_MMA_SYNC("m16n8k16.row.col.f32.bf16.bf16.f32");
#endif
}

__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    Half FC_WHERE) {
#if FC_EMULATED
  cuda_shim::mma_m16n8k16_half(d, a, b, where);
#else
  FC_MMA_SYNC("m16n8k16.row.col.f32.f16.f16.f32");
#endif
}

// d += a b, 16 x 8 x 8. Operands come from to_tf32: the unit ignores the low 13 bits.
__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2] FC_WHERE) {
#if FC_EMULATED
  cuda_shim::mma_m16n8k8_tf32(d, a, b, where);
#else
  FC_MMA_SYNC("m16n8k8.row.col.f32.tf32.tf32.f32");
#endif
}

#undef FC_MMA_SYNC

// x rounded to the 10 mantissa bits of tf32, to nearest, ties away from zero; as register bits.
__device__ inline uint32_t to_tf32(float x) {
#if FC_EMULATED
  return cuda_shim::to_tf32(x);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  return __float_as_uint(x);
#endif
}

}  // namespace fastconv::cuda
