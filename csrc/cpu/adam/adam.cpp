// SPDX-License-Identifier: MIT
// Chunk table, threads and the choice of kernels for Adam. Every thread gets one contiguous range
// of chunks, the same from step to step, so that small networks stay in the caches of the same
// cores.
#include "cpu/adam/adam.h"

#include <algorithm>
#include <cmath>

#include "cpu/adam/adam_ukernels.h"
#include "cpu/runtime/denormals.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kBytesPerElement = 28;  // float32: four arrays read, three written
constexpr int64_t kWorkPerElement = 16;
constexpr int64_t kBlockChunks = 64;  // hardware prefetching wants long ascending runs

int64_t elements(const AdamList& list) {
  if (list.chunk_count == 0) return 0;
  const AdamChunk& last = list.chunks[list.chunk_count - 1];
  return last.before + last.size;
}

// The first chunk of task `task` of `tasks`; tasks differ by at most a chunk.
int64_t first_chunk(const AdamList& list, int64_t task, int64_t tasks) {
  if (task == tasks) return list.chunk_count;
  const int64_t target = elements(list) / tasks * task;
  const AdamChunk* begin = list.chunks;
  const AdamChunk* found =
      std::lower_bound(begin, begin + list.chunk_count, target,
                       [](const AdamChunk& chunk, int64_t t) { return chunk.before < t; });
  return found - begin;
}

// Calls body(first, last) with ranges of chunks, one per thread.
template <class Body>
void for_chunk_ranges(const AdamList& list, int64_t work, int64_t bytes, const Body& body) {
  if (list.chunk_count == 0) return;
  const int64_t n = elements(list);
  const int64_t threads = list.ordered ? 1 : worthwhile_threads(n * work, n * bytes);
  const int64_t tasks = std::min(list.chunk_count, threads);
  parallel_for(tasks, [&](int64_t task) {
    body(first_chunk(list, task, tasks), first_chunk(list, task + 1, tasks));
  });
}

int variant_of(const AdamTensor& tensor, const AdamGradient& gradient) {
  const AdamCoefficients& c = tensor.coefficients;
  const double scale = c.sign * gradient.factor * (gradient.write_back ? 1.0 : gradient.unscale);
  return (c.l2 != 0.0 ? kAdamL2 : 0) | (tensor.max_exp_avg_sq != nullptr ? kAdamMax : 0) |
         (scale != 1.0 ? kAdamScale : 0) | (gradient.write_back ? kAdamWriteBack : 0);
}

void update_chunk(const AdamKernels& kernels, const AdamList& list, const AdamChunk& chunk,
                  const AdamGradient& gradient) {
  const AdamTensor& tensor = list.tensors[chunk.tensor];
  if (tensor.grad == nullptr) return;
  const int type = static_cast<int>(tensor.type);
  kernels.update[type][variant_of(tensor, gradient)](tensor, chunk.begin, chunk.size, gradient);
}

int64_t element_bytes(AdamType type) {
  return type == AdamType::kFloat64 ? 8 : type == AdamType::kFloat32 ? 4 : 2;
}

// The exponent of an infinity or NaN is all ones; bfloat16 is the upper half of a float.
bool is_finite(const AdamTensor& tensor, int64_t i) {
  if (tensor.type == AdamType::kFloat64)
    return std::isfinite(static_cast<const double*>(tensor.grad)[i]);
  if (tensor.type == AdamType::kFloat32)
    return std::isfinite(static_cast<const float*>(tensor.grad)[i]);
  return (static_cast<const uint16_t*>(tensor.grad)[i] & 0x7f80) != 0x7f80;
}

}  // namespace

int64_t adam_chunk_count(const AdamTensor* tensors, int64_t count) {
  int64_t chunks = 0;
  for (int64_t t = 0; t < count; ++t)
    chunks += (tensors[t].size + kAdamChunkSize - 1) / kAdamChunkSize;
  return chunks;
}

void adam_make_chunks(const AdamTensor* tensors, int64_t count, AdamChunk* chunks) {
  int64_t before = 0;
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t begin = 0; begin < tensors[t].size; begin += kAdamChunkSize) {
      const int64_t size = std::min(kAdamChunkSize, tensors[t].size - begin);
      *chunks++ = {t, begin, size, before};
      before += size;
    }
  }
}

double adam_sum_of_squares(const AdamList& list, double unscale, double* partial) {
  const AdamKernels& kernels = adam_kernels(active_isa());
  constexpr int64_t kReadWork = 2, kReadBytes = 4;
  for_chunk_ranges(list, kReadWork, kReadBytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const AdamChunk& chunk = list.chunks[i];
      const AdamTensor& tensor = list.tensors[chunk.tensor];
      const int type = static_cast<int>(tensor.type);
      const char* values = static_cast<const char*>(tensor.grad);
      partial[i] = values == nullptr
                       ? 0.0
                       : kernels.sum_of_squares[type](
                             values + chunk.begin * element_bytes(tensor.type), chunk.size);
    }
  });
  double sum = 0.0;
  for (int64_t i = 0; i < list.chunk_count; ++i) sum += partial[i];
  return sum * unscale * unscale;
}

bool adam_gradients_finite(const AdamList& list) {
  for (int64_t c = 0; c < list.chunk_count; ++c) {
    const AdamChunk& chunk = list.chunks[c];
    const AdamTensor& tensor = list.tensors[chunk.tensor];
    if (tensor.grad == nullptr) continue;
    for (int64_t i = chunk.begin; i < chunk.begin + chunk.size; ++i)
      if (!is_finite(tensor, i)) return false;
  }
  return true;
}

void adam_update(const AdamList& list, const AdamGradient& gradient, bool last_first) {
  const Isa isa = active_isa();
  const AdamKernels& kernels = adam_kernels(isa);
  record_kernel(KernelId::kAdam, list.ordered ? "ordered" : "chunks", isa);
  const bool backwards = last_first && !list.ordered;
  for_chunk_ranges(list, kWorkPerElement, kBytesPerElement, [&](int64_t first, int64_t last) {
    const FlushDenormals flush;
    const int64_t blocks = (last - first + kBlockChunks - 1) / kBlockChunks;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = first + (backwards ? blocks - 1 - b : b) * kBlockChunks;
      const int64_t end = std::min(last, begin + kBlockChunks);
      for (int64_t i = begin; i < end; ++i) update_chunk(kernels, list, list.chunks[i], gradient);
    }
  });
}

}  // namespace fastconv::cpu
