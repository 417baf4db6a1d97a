// SPDX-License-Identifier: MIT
#include "bindings/plain_tensors.h"

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

namespace fastconv::bindings {
namespace {

bool within(c10::DispatchKeySet keys, c10::DispatchKeySet allowed) {
  return (keys.raw_repr() & ~allowed.raw_repr()) == 0;
}

}  // namespace

bool nothing_intervenes() {
  return !c10::impl::dispatch_mode_enabled() &&
         within(c10::impl::tls_local_dispatch_key_set().included_, c10::default_included_set);
}

bool are_plain(at::ArrayRef<Tensor> tensors) {
  using c10::DispatchKey;
  static constexpr c10::DispatchKeySet kPlain({DispatchKey::CPU, DispatchKey::ADInplaceOrView,
                                               DispatchKey::AutogradCPU, DispatchKey::AutocastCPU});
  if (!nothing_intervenes()) return false;
  for (const Tensor& t : tensors)
    if (t.defined() && (!within(t.key_set(), kPlain) || has_tangent(t))) return false;
  return true;
}

bool have_memory(at::ArrayRef<Tensor> tensors) {
  for (const Tensor& t : tensors)
    if (t.defined() && !t.has_storage()) return false;
  return true;
}

}  // namespace fastconv::bindings
