// SPDX-License-Identifier: MIT
#include <limits>

#include "check.h"
#include "common/checked.h"
#include "common/shapes.h"

namespace fastconv {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();

void test_multiplication() {
  int64_t out = 0;
  CHECK(checked_mul(3, -7, &out) && out == -21);
  CHECK(checked_mul(kMost, 1, &out) && out == kMost);
  CHECK(checked_mul(0, kLeast, &out) && out == 0);
  CHECK(!checked_mul(kMost, 2, &out));
  CHECK(!checked_mul(kLeast, -1, &out));
  CHECK(!checked_mul(int64_t{1} << 32, int64_t{1} << 31, &out));
}

void test_addition() {
  int64_t out = 0;
  CHECK(checked_add(kMost, kLeast, &out) && out == -1);
  CHECK(!checked_add(kMost, 1, &out));
  CHECK(!checked_add(kLeast, -1, &out));
}

void test_product() {
  int64_t out = 0;
  CHECK(checked_product({}, &out) && out == 1);
  CHECK(checked_product({2, 3, 5, 7}, &out) && out == 210);
  CHECK(checked_product({0, kMost, kMost}, &out) && out == 0);
  CHECK(!checked_product({int64_t{1} << 40, int64_t{1} << 40}, &out));
  CHECK(!checked_product({kMost, 2, 0}, &out));
}

void test_rounding() {
  CHECK(ceil_div(0, 5) == 0);
  CHECK(ceil_div(1, 5) == 1);
  CHECK(ceil_div(5, 5) == 1);
  CHECK(ceil_div(6, 5) == 2);
  CHECK(round_up(0, 16) == 0);
  CHECK(round_up(1, 16) == 16);
  CHECK(round_up(16, 16) == 16);
  CHECK(round_up(17, 16) == 32);
}

void test_strides() {
  const Strides4 rows = contiguous_strides(3, 4, 5);
  CHECK(rows.batch == 60 && rows.channel == 20 && rows.row == 5 && rows.column == 1);
  const Strides4 last = channels_last_strides(3, 4, 5);
  CHECK(last.batch == 60 && last.channel == 1 && last.row == 15 && last.column == 3);
}

}  // namespace
}  // namespace fastconv

int main() {
  fastconv::test_multiplication();
  fastconv::test_addition();
  fastconv::test_product();
  fastconv::test_rounding();
  fastconv::test_strides();
  return fastconv::testing::report();
}
