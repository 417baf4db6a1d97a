// SPDX-License-Identifier: MIT
#include "cpu/runtime/trace.h"

#include <atomic>
#include <cstring>

namespace fastconv::cpu {
namespace {

constexpr int kKernelCount = static_cast<int>(KernelId::kCount);

struct AtomicRecord {
  std::atomic<const char*> algorithm{nullptr};
  std::atomic<Isa> isa{Isa::kScalar};
};

AtomicRecord records[kKernelCount];
std::atomic<int> last_kernel{-1};
std::atomic<const char*> forced[kKernelCount];

}  // namespace

const char* kernel_name(KernelId kernel) {
  static constexpr const char* kNames[kKernelCount] = {
      "conv2d_forward",       "conv2d_grad_input",     "conv2d_grad_weight",  "max_pool2d_forward",
      "max_pool2d_backward",  "avg_pool2d_forward",    "avg_pool2d_backward", "adam",
      "conv_block2d_forward", "conv_block2d_backward", "mlp_forward",         "mlp_backward",
      "lstm_forward",         "lstm_backward",         "batch_norm_forward",  "batch_norm_backward",
      "relu_forward",         "relu_backward",
  };
  return kNames[static_cast<int>(kernel)];
}

void record_kernel(KernelId kernel, const char* algorithm, Isa isa) {
  AtomicRecord& record = records[static_cast<int>(kernel)];
  record.algorithm.store(algorithm, std::memory_order_relaxed);
  record.isa.store(isa, std::memory_order_relaxed);
  last_kernel.store(static_cast<int>(kernel), std::memory_order_relaxed);
}

KernelRecord last_record(KernelId kernel) {
  const AtomicRecord& record = records[static_cast<int>(kernel)];
  return {record.algorithm.load(std::memory_order_relaxed),
          record.isa.load(std::memory_order_relaxed)};
}

KernelRecord last_record() {
  const int kernel = last_kernel.load(std::memory_order_relaxed);
  if (kernel < 0) return {nullptr, Isa::kScalar};
  return last_record(static_cast<KernelId>(kernel));
}

void forget_records() {
  for (AtomicRecord& record : records) record.algorithm.store(nullptr, std::memory_order_relaxed);
  last_kernel.store(-1, std::memory_order_relaxed);
}

const char* const* kernel_algorithms(KernelId kernel) {
  static constexpr const char* kGather[] = {
      "panel",    "pixel_vectors", "channel_vectors", "image_vectors", "rows", "shifted",
      "winograd", "winograd_4x4",  "depthwise",       "torch",         nullptr};
  static constexpr const char* kGradWeight[] = {
      "panel",    "direct",       "dot",       "image_vectors", "rows",
      "winograd", "winograd_4x4", "depthwise", "torch",         nullptr};
  static constexpr const char* kNone[] = {nullptr};
  switch (kernel) {
    case KernelId::kConv2dForward:
    case KernelId::kConv2dGradInput:
      return kGather;
    case KernelId::kConv2dGradWeight:
      return kGradWeight;
    default:
      return kNone;
  }
}

void force_algorithm(KernelId kernel, const char* algorithm) {
  forced[static_cast<int>(kernel)].store(algorithm, std::memory_order_relaxed);
}

const char* forced_algorithm(KernelId kernel) {
  return forced[static_cast<int>(kernel)].load(std::memory_order_relaxed);
}

bool is_other(const char* forced, const char* algorithm) {
  return forced != nullptr && std::strcmp(forced, algorithm) != 0;
}

}  // namespace fastconv::cpu
