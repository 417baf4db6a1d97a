# SPDX-License-Identifier: MIT
"""Named pooling cases, seeded random ones, and the comparisons that the pooling tests share."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PoolCase:
    """One window over one input; the fields are torch.nn.functional's arguments."""

    name: str
    shape: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def max_options(self) -> tuple:
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    def avg_options(self) -> tuple:
        return self.kernel, self.stride, self.padding, self.ceil_mode

    def algorithm(self, channels_last: bool) -> str:
        """The name that fastconv records for the case."""
        if channels_last:
            return "channels_last"
        stride = self.stride or self.kernel
        fixed = {((2, 2), (2, 2)): "2x2s2", ((3, 3), (2, 2)): "3x3s2", ((3, 3), (1, 1)): "3x3s1"}
        if self.dilation != (1, 1):
            return "general"
        return fixed.get((self.kernel, stride), "general")


MAX_CASES = [
    PoolCase("lenet_pool1", (4, 6, 28, 28), (2, 2)),
    PoolCase("lenet_pool2", (5, 16, 10, 10), (2, 2)),
    PoolCase("one_row_per_vector", (2, 3, 6, 32), (2, 2)),
    PoolCase("wide_rows", (1, 2, 8, 150), (2, 2)),
    PoolCase("odd_size", (2, 3, 13, 17), (2, 2)),
    PoolCase("odd_size_ceil", (2, 3, 13, 17), (2, 2), ceil_mode=True),
    PoolCase("padded_2x2", (2, 3, 9, 12), (2, 2), (2, 2), (1, 1)),
    PoolCase("two_by_two", (3, 5, 2, 2), (2, 2)),
    PoolCase("one_by_one", (2, 3, 1, 1), (1, 1)),
    PoolCase("resnet_stem", (2, 4, 56, 56), (3, 3), (2, 2), (1, 1)),
    PoolCase("resnet_stem_wide", (1, 2, 30, 113), (3, 3), (2, 2), (1, 1)),
    PoolCase("alexnet", (2, 3, 27, 27), (3, 3), (2, 2)),
    PoolCase("small_3x3s2", (9, 7, 7, 7), (3, 3), (2, 2), (1, 1), ceil_mode=True),
    PoolCase("googlenet", (2, 5, 14, 14), (3, 3), (1, 1), (1, 1)),
    PoolCase("googlenet_wide", (1, 3, 28, 70), (3, 3), (1, 1), (1, 1)),
    PoolCase("same_1x1_spatial", (2, 33, 1, 1), (3, 3), (1, 1), (1, 1)),
    PoolCase("spp_5x5", (2, 3, 13, 20), (5, 5), (1, 1), (2, 2)),
    PoolCase("spp_13x13", (1, 3, 13, 13), (13, 13), (1, 1), (6, 6)),
    PoolCase("stride3", (2, 3, 12, 29), (3, 3)),
    PoolCase("stride3_overlap", (2, 3, 14, 50), (5, 5), (3, 3), (2, 2)),
    PoolCase("stride4", (2, 5, 16, 28), (4, 4)),
    PoolCase("stride5", (2, 3, 10, 100), (5, 3), (5, 5), (1, 1)),
    PoolCase("stride_beyond_kernel", (2, 3, 20, 45), (2, 2), (5, 5)),
    PoolCase("stride_beyond_vector", (2, 2, 3, 90), (1, 2), (1, 20)),
    PoolCase("uneven", (2, 3, 11, 19), (2, 3), (1, 2), (1, 0)),
    PoolCase("uneven_strides", (2, 3, 11, 40), (3, 2), (3, 1), (0, 1), ceil_mode=True),
    PoolCase("dilated", (2, 3, 12, 24), (3, 3), (1, 1), (1, 1), (2, 2)),
    PoolCase("dilated_stride2", (2, 3, 15, 40), (2, 3), (2, 2), (0, 1), (3, 2)),
    PoolCase("dilated_stride3", (2, 3, 15, 60), (3, 3), (3, 3), (1, 1), (2, 3)),
    PoolCase("global_7x7", (3, 17, 7, 7), (7, 7)),
    PoolCase("global_8x8", (1, 20, 8, 8), (8, 8)),
    PoolCase("half_global", (2, 3, 14, 14), (7, 7)),
    PoolCase("window_256_taps", (1, 3, 20, 20), (16, 16), (2, 2), (3, 3)),
    PoolCase("window_289_taps", (1, 3, 20, 20), (17, 17), (2, 2), (3, 3)),
    PoolCase("global_28x28", (2, 3, 28, 28), (28, 28)),
    PoolCase("kernel_beyond_input", (2, 3, 4, 5), (6, 6), (7, 7), (0, 0), ceil_mode=True),
    PoolCase("many_channels", (1, 70, 6, 6), (2, 2)),
    PoolCase("unbatched", (5, 9, 12), (3, 3), (2, 2), (1, 1)),
    PoolCase("unbatched_one_channel", (1, 8, 8), (2, 2)),
]

AVG_CASES = [case for case in MAX_CASES if case.dilation == (1, 1)]


def random_cases(seed: int, count: int) -> list[PoolCase]:
    """Valid windows over small inputs of any size."""
    rng = random.Random(seed)
    cases: list[PoolCase] = []
    while len(cases) < count:
        kernel = rng.choice([(2, 2), (3, 3), (rng.randint(1, 7), rng.randint(1, 7))])
        stride = rng.choice([None, (1, 1), (2, 2), (rng.randint(1, 6), rng.randint(1, 6))])
        padding = (rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2))
        dilation = rng.choice([(1, 1), (1, 1), (rng.randint(1, 3), rng.randint(1, 3))])
        shape = (
            rng.randint(1, 3),
            rng.choice([1, 2, 3, 17, 40]),
            rng.randint(1, 30),
            rng.choice([rng.randint(1, 20), rng.randint(1, 90)]),
        )
        extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        fits = all(e <= n + 2 * p for e, n, p in zip(extents, shape[2:], padding, strict=True))
        # A window can miss the input only when its taps straddle it.
        straddles = any(d > n for d, n in zip(dilation, shape[2:], strict=True))
        if fits and not straddles:
            name = f"random_{seed}_{len(cases)}"
            ceil_mode = rng.random() < 0.4
            cases.append(PoolCase(name, shape, kernel, stride, padding, dilation, ceil_mode))
    return cases


def make_input(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, special: bool, seed: int = 0
) -> Tensor:
    """Random values; with ``special`` many ties, zeros of both signs, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if special:
        x = x.round()
        chance = torch.rand(shape, generator=generator)
        x[chance < 0.25] *= -0.0
        x[chance > 0.75] = -float("inf")
        x[chance > 0.95] = float("nan")
        x[chance > 0.98] = float("inf")
    x = x.to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal to the last bit: signs of zeros and, but for bfloat16, NaN payloads included."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == torch.bfloat16:
        # torch has two NaN, that of its vectors and that of its loops.
        assert torch.equal(actual.isnan(), expected.isnan())
        actual, expected = actual.nan_to_num(0, 1, -1), expected.nan_to_num(0, 1, -1)
    integers = {
        torch.float32: torch.int32,
        torch.float64: torch.int64,
        torch.bfloat16: torch.int16,
    }
    if actual.dtype in integers:
        as_integers = integers[actual.dtype]
        actual = actual.contiguous().view(as_integers)
        expected = expected.contiguous().view(as_integers)
    assert torch.equal(actual, expected)


def assert_parity(actual: Tensor, torchs: Tensor, oracle: Tensor) -> None:
    """The error against the float64 oracle is at most twice torch's, plus 1e-6 of the rms."""
    assert actual.shape == oracle.shape
    error = (actual.double() - oracle).abs().max()
    torch_error = (torchs.double() - oracle).abs().max()
    floor = 1e-6 * oracle.square().mean().sqrt()
    assert error <= 2 * torch_error + floor
