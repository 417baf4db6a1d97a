// SPDX-License-Identifier: MIT
// One tile of a matrix product on the tensor cores, with float32 sums:
//
//   sums[m][n] += sum_k A[m][k] * B[n][k]     m in [m0, m0 + Rows), n in [n0, n0 + 64)
//
// A block of four warps: 2 x 2 warps of 32 x 32 sums when Rows is 64, 1 x 4 of 16 x 16 when it is
// 16. The operands pass through shared memory in the order they are stored, 64 bytes of k deep and
// double buffered. The sums go back through shared memory, so that whoever finishes them has four
// neighbouring columns, as in tile_simt.cuh. `Unit` is one of the two kinds of arithmetic below.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/ptx.cuh"
#include "cuda/gemm/matrix.cuh"

namespace fastconv::cuda {

template <class T>
using MmaTag = std::conditional_t<std::is_same_v<T, __half>, Half, Bf16>;

__device__ inline int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % 32;
}

// bfloat16 or float16. ldmatrix reads fragments, and turns operands that are stored across k. Lines
// of shared memory are an odd number of 16-byte pieces apart: the eight rows of a matrix lie in
// different banks.
template <class T>
struct MmaUnit16 {
  using Element = T;
  static constexpr int kDepth = 32;
  static constexpr int kStep = 16;
  static constexpr int kPadAlong = 8;
  static constexpr int kPadAcross = 8;
  using A = uint32_t[4];
  using B = uint32_t[2];

  template <bool AlongK, int Pitch>
  __device__ static void load_a(A& a, const T* shared, int m, int k) {
    const int line = lane_of_warp() % 8, matrix = lane_of_warp() / 8;
    m += matrix % 2 * 8;
    k += matrix / 2 * 8;
    if constexpr (AlongK)
      ldmatrix_x4(a, shared + (m + line) * Pitch + k);
    else
      ldmatrix_x4_trans(a, shared + (k + line) * Pitch + m);
  }

  // Columns n and n + 8.
  template <bool AlongK, int Pitch>
  __device__ static void load_b(B& first, B& second, const T* shared, int n, int k) {
    const int line = lane_of_warp() % 8, matrix = lane_of_warp() / 8;
    n += matrix / 2 * 8;
    k += matrix % 2 * 8;
    uint32_t both[4];
    if constexpr (AlongK)
      ldmatrix_x4(both, shared + (n + line) * Pitch + k);
    else
      ldmatrix_x4_trans(both, shared + (k + line) * Pitch + n);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      first[r] = both[r];
      second[r] = both[2 + r];
    }
  }

  __device__ static void multiply(float (&sums)[4], const A& a, const B& b) {
    mma_m16n8k16(sums, a, b, MmaTag<T>{});
  }
};

// float32 rounded to tf32, ten bits of mantissa. Fragments are single words; lines of shared memory
// are 4 words modulo 32 apart along k, 8 across it: the lanes of a fragment lie in 32 banks.
struct MmaUnitTf32 {
  using Element = float;
  static constexpr int kDepth = 16;
  static constexpr int kStep = 8;
  static constexpr int kPadAlong = 4;
  static constexpr int kPadAcross = 8;
  using A = uint32_t[4];
  using B = uint32_t[2];

  template <bool AlongK, int Pitch>
  __device__ static void load_a(A& a, const float* shared, int m, int k) {
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = m + g + r % 2 * 8, depth = k + t + r / 2 * 4;
      a[r] = to_tf32(AlongK ? shared[row * Pitch + depth] : shared[depth * Pitch + row]);
    }
  }

  template <bool AlongK, int Pitch>
  __device__ static void load_b(B& first, B& second, const float* shared, int n, int k) {
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int column = n + g, depth = k + t + r * 4;
      first[r] = to_tf32(AlongK ? shared[column * Pitch + depth] : shared[depth * Pitch + column]);
      second[r] = to_tf32(AlongK ? shared[(column + 8) * Pitch + depth]
                                 : shared[depth * Pitch + column + 8]);
    }
  }

  __device__ static void multiply(float (&sums)[4], const A& a, const B& b) {
    mma_m16n8k8_tf32(sums, a, b);
  }
};

template <class Unit, int Rows, bool AAlongK, bool BAlongK>
class MmaTile {
 public:
  using Element = typename Unit::Element;
  using Sum = float;
  static constexpr int kThreads = 128;
  // Blocks per multiprocessor that the registers must allow, or 0: as the compiler likes, which for
  // the 16-bit types on sm_120 was to spill some rather than to let one of eight blocks go.
  static constexpr int kBlocks = sizeof(Element) == 4 ? 0 : Rows == 64 ? 4 : 6;
  static constexpr int kRows = Rows;
  static constexpr int kColumns = 64;
  static constexpr int kDepth = Unit::kDepth;

 private:
  using T = Element;
  static constexpr int kAPitch = AAlongK ? kDepth + Unit::kPadAlong : Rows + Unit::kPadAcross;
  static constexpr int kBPitch = BAlongK ? kDepth + Unit::kPadAlong : kColumns + Unit::kPadAcross;
  static constexpr int kALines = AAlongK ? Rows : kDepth;
  static constexpr int kBLines = BAlongK ? kColumns : kDepth;
  static constexpr int kABuffer = kALines * kAPitch;
  static constexpr int kBBuffer = kBLines * kBPitch;
  static constexpr int kWarpsDown = Rows == 64 ? 2 : 1;
  static constexpr int kWarpsAcross = 4 / kWarpsDown;
  static constexpr int kMTiles = Rows / kWarpsDown / 16;
  static constexpr int kNTiles = kColumns / kWarpsAcross / 8;
  static constexpr int kSumPitch = kColumns + 4;
  static constexpr int kVector = kPer128<T>;
  static_assert((Rows == 64 || Rows == 16) && kNTiles % 2 == 0);
  static_assert(kAPitch % kVector == 0 && kBPitch % kVector == 0);

 public:
  static constexpr int kOperandBytes = 2 * (kABuffer + kBBuffer) * int(sizeof(T));
  static constexpr int kSumBytes = Rows * kSumPitch * int(sizeof(float));
  static constexpr int kSharedBytes = kOperandBytes > kSumBytes ? kOperandBytes : kSumBytes;

  __device__ MmaTile(int64_t m0, int64_t n0, void* shared)
      : m0_(m0), n0_(n0), shared_(static_cast<unsigned char*>(shared)) {
#pragma unroll
    for (int i = 0; i < kMTiles; ++i)
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) sums_[i][j][r] = 0.0f;
  }

  // As SimtTile::add.
  __device__ void add(const Matrix<T>& a, const Matrix<T>& b, int64_t k_begin, int64_t k_end) {
    if (k_begin >= k_end) return;
    fetch(a, b, k_begin);
    int buffer = 0;
    store(buffer);
    __syncthreads();
    for (int64_t k = k_begin; k < k_end; k += kDepth) {
      const bool more = k + kDepth < k_end;
      if (more) fetch(a, b, k + kDepth);
      multiply(buffer);
      if (more) store(buffer ^ 1);
      __syncthreads();
      buffer ^= 1;
    }
  }

  // As SimtTile::finish; ends the use of the tile.
  template <class Body>
  __device__ void finish(Body&& body) {
    float* tile = reinterpret_cast<float*>(shared_);
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
#pragma unroll
    for (int i = 0; i < kMTiles; ++i)
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        float* at = tile + (warp_row() + i * 16 + g) * kSumPitch + warp_column() + j * 8 + 2 * t;
        store_vector<2>(at, {{sums_[i][j][0], sums_[i][j][1]}});
        store_vector<2>(at + 8 * kSumPitch, {{sums_[i][j][2], sums_[i][j][3]}});
      }
    __syncthreads();
#pragma unroll
    for (int p = static_cast<int>(threadIdx.x); p < Rows * kColumns / 4; p += kThreads) {
      const int row = p / (kColumns / 4), column = p % (kColumns / 4) * 4;
      const Vec128<float> v = load128(tile + row * kSumPitch + column);
      body(m0_ + row, n0_ + column, v.values);
    }
  }

 private:
  template <int Lines, int Width, int Pitch>
  struct Pieces {
    static constexpr int kAcross = Width / kVector;
    static constexpr int kCount = Lines * kAcross;
    static constexpr int kEach = (kCount + kThreads - 1) / kThreads;
    Vec128<T> piece[kEach];

    template <bool AlongK>
    __device__ void fetch(const Matrix<T>& m, int64_t first, int64_t k) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int p = static_cast<int>(threadIdx.x) + i * kThreads;
        if (p >= kCount) continue;
        const int line = p / kAcross, at = p % kAcross * kVector;
        piece[i] =
            AlongK ? load_piece(m, first + line, k + at) : load_piece(m, k + line, first + at);
      }
    }

    __device__ void store(T* to) const {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int p = static_cast<int>(threadIdx.x) + i * kThreads;
        if (p >= kCount) continue;
        const int line = p / kAcross, at = p % kAcross * kVector;
        store128(to + line * Pitch + at, piece[i]);
      }
    }
  };

  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int warp_row() { return warp() / kWarpsAcross * (kMTiles * 16); }
  __device__ static int warp_column() { return warp() % kWarpsAcross * (kNTiles * 8); }
  __device__ T* a_shared(int buffer) { return reinterpret_cast<T*>(shared_) + buffer * kABuffer; }
  __device__ T* b_shared(int buffer) {
    return reinterpret_cast<T*>(shared_) + 2 * kABuffer + buffer * kBBuffer;
  }

  __device__ void fetch(const Matrix<T>& a, const Matrix<T>& b, int64_t k) {
    a_.template fetch<AAlongK>(a, m0_, k);
    b_.template fetch<BAlongK>(b, n0_, k);
  }

  __device__ void store(int buffer) {
    a_.store(a_shared(buffer));
    b_.store(b_shared(buffer));
  }

  __device__ void multiply(int buffer) {
    const T* a = a_shared(buffer);
    const T* b = b_shared(buffer);
#pragma unroll
    for (int k = 0; k < kDepth; k += Unit::kStep) {
      typename Unit::A af[kMTiles];
      typename Unit::B bf[kNTiles];
#pragma unroll
      for (int i = 0; i < kMTiles; ++i)
        Unit::template load_a<AAlongK, kAPitch>(af[i], a, warp_row() + i * 16, k);
#pragma unroll
      for (int j = 0; j < kNTiles; j += 2)
        Unit::template load_b<BAlongK, kBPitch>(bf[j], bf[j + 1], b, warp_column() + j * 8, k);
#pragma unroll
      for (int i = 0; i < kMTiles; ++i)
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) Unit::multiply(sums_[i][j], af[i], bf[j]);
    }
  }

  int64_t m0_, n0_;
  unsigned char* shared_;
  float sums_[kMTiles][kNTiles][4];
  Pieces<kALines, AAlongK ? kDepth : Rows, kAPitch> a_;
  Pieces<kBLines, BAlongK ? kDepth : kColumns, kBPitch> b_;
};

}  // namespace fastconv::cuda
