// SPDX-License-Identifier: MIT
#pragma once

namespace fastconv::bindings {

// Makes the kernels run on torch's intra-op threads (torch.set_num_threads).
void install_torch_thread_pool();

}  // namespace fastconv::bindings
