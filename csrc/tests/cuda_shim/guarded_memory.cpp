// SPDX-License-Identifier: MIT
#include "tests/cuda_shim/guarded_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace fastconv::cuda_shim {
namespace {

constexpr size_t kGuardBytes = size_t{1} << 20;
constexpr unsigned char kPoison = 0xff;
constexpr unsigned char kGap = 0xa5;
constexpr int kMaxBuffers = 4096;

struct Buffer {
  unsigned char* data;  // nullptr: free slot
  size_t bytes;
  unsigned char* pages;  // between the guards
  size_t page_bytes;
  char name[32];
};

// A plain array: a signal handler reads it.
Buffer buffers[kMaxBuffers];

Buffer* find(const void* pointer) {
  for (Buffer& buffer : buffers)
    if (buffer.data == pointer && pointer != nullptr) return &buffer;
  return nullptr;
}

template <class Body>
void for_each_gap_byte(const Buffer& buffer, const Body& body) {
  for (unsigned char* p = buffer.pages; p < buffer.data; ++p) body(*p);
  for (unsigned char* p = buffer.data + buffer.bytes; p < buffer.pages + buffer.page_bytes; ++p)
    body(*p);
}

bool intact(const Buffer& buffer) {
  bool same = true;
  for_each_gap_byte(buffer, [&](unsigned char byte) { same = same && byte == kGap; });
  return same;
}

}  // namespace

void* guarded_allocate(size_t bytes, size_t alignment, Flush flush, const char* name) {
  Buffer* slot = nullptr;
  for (Buffer& buffer : buffers) {
    if (buffer.data != nullptr) continue;
    slot = &buffer;
    break;
  }
  if (slot == nullptr) std::abort();
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t page_bytes = (bytes + alignment + page - 1) / page * page;
  void* mapped = mmap(nullptr, page_bytes + 2 * kGuardBytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) std::abort();
  auto* pages = static_cast<unsigned char*>(mapped) + kGuardBytes;
  if (mprotect(pages, page_bytes, PROT_READ | PROT_WRITE) != 0) std::abort();
  const size_t offset = flush == Flush::kStart ? 0 : (page_bytes - bytes) / alignment * alignment;
  *slot = {pages + offset, bytes, pages, page_bytes, {}};
  std::snprintf(slot->name, sizeof(slot->name), "%s", name);
  for (size_t i = 0; i < bytes; ++i) slot->data[i] = kPoison;
  for_each_gap_byte(*slot, [](unsigned char& byte) { byte = kGap; });
  return slot->data;
}

bool guarded_intact(const void* pointer) {
  const Buffer* buffer = find(pointer);
  return buffer != nullptr && intact(*buffer);
}

bool guarded_free(void* pointer) {
  Buffer* buffer = find(pointer);
  if (buffer == nullptr) return false;
  const bool same = intact(*buffer);
  munmap(buffer->pages - kGuardBytes, buffer->page_bytes + 2 * kGuardBytes);
  buffer->data = nullptr;
  return same;
}

void describe_address(const void* address, char* text, size_t size) {
  const auto* at = static_cast<const unsigned char*>(address);
  for (const Buffer& buffer : buffers) {
    if (buffer.data == nullptr || at < buffer.pages - kGuardBytes ||
        at >= buffer.pages + buffer.page_bytes + kGuardBytes)
      continue;
    const bool before = at < buffer.data;
    const size_t distance =
        static_cast<size_t>(before ? buffer.data - at : at - buffer.data - buffer.bytes);
    std::snprintf(text, size, "%zu bytes %s the %zu bytes of '%s'", distance,
                  before ? "before" : "past the end of", buffer.bytes, buffer.name);
    return;
  }
  std::snprintf(text, size, "address %p, near no buffer", address);
}

}  // namespace fastconv::cuda_shim
