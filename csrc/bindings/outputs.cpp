// SPDX-License-Identifier: MIT
#include "bindings/outputs.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/TensorOptions.h>

#include "bindings/block_cache.h"

namespace fastconv::bindings {

at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                        at::MemoryFormat format) {
  const at::ScalarType type = at::typeMetaToScalarType(options.dtype());
  const int64_t bytes =
      c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(type));
  if (!options.device().is_cpu()) return at::empty(sizes, options, format);
  // Not at::empty, which goes through the dispatcher twice.
  if (bytes < kMinCachedBytes)
    return at::detail::empty_cpu(sizes, type, /*pin_memory=*/false, format);
  return at::detail::empty_generic(sizes, block_cache(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   type, format);
}

}  // namespace fastconv::bindings
