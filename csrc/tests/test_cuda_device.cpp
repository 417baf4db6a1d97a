// SPDX-License-Identifier: MIT
#include <string>

#include "check.h"
#include "cuda/common/device.h"

namespace fastconv::cuda {
namespace {

void test_sentence_for_an_old_gpu() {
  CHECK(unsupported_gpu("Tesla P100", 60, 75, "75 80 90") ==
        "expected a GPU of compute capability 7.5 or newer, got Tesla P100 of 6.0; "
        "this build of fastconv has kernels for sm_75 80 90");
  CHECK(unsupported_gpu("A", 86, 120, "120").find("12.0 or newer, got A of 8.6;") !=
        std::string::npos);
}

}  // namespace
}  // namespace fastconv::cuda

int main() {
  fastconv::cuda::test_sentence_for_an_old_gpu();
  return fastconv::testing::report();
}
