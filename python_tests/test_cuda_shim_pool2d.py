# SPDX-License-Identifier: MIT
"""The CUDA kernels of max_pool2d and avg_pool2d, executed by the emulator, against torch: the named
cases of the CPU op, both layouts, every element type, NaN and ties, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from cuda_shim import FLUSH, SCHEDULES, CudaShim, CudaShimError, Memory
from pool_cases import (
    AVG_CASES,
    MAX_CASES,
    PoolCase,
    assert_parity,
    assert_same_bits,
    make_input,
    random_cases,
)
from torch import Tensor

ELEMENTS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = [False, True]
DIVISORS = [(True, None), (False, None), (True, 3), (False, -7)]

# Small enough for every schedule; between them they reach every kernel.
SMALL = [
    PoolCase("rows", (2, 3, 7, 16), (2, 2)),
    PoolCase("windows", (2, 8, 5, 7), (2, 2), ceil_mode=True),
    PoolCase("padded_windows", (1, 16, 7, 6), (2, 2), (3, 3), (1, 1)),
    PoolCase("windows_and_rest", (1, 8, 5, 7), (2, 2)),
    PoolCase("apart_in_rows_only", (1, 8, 6, 7), (2, 3), (2, 2), (0, 1)),
    PoolCase("overlapping", (2, 8, 6, 5), (3, 3), (2, 2), (1, 1)),
    PoolCase("dilated", (1, 3, 9, 8), (2, 3), (1, 2), (1, 1), (3, 2)),
    PoolCase("wide_offsets", (1, 8, 18, 17), (17, 17), (1, 1)),
    PoolCase("64_bit_indices", (2, 8, 5, 7), (3, 2), (2**30, 2), (1, 1)),
]


def small(name: str) -> PoolCase:
    return next(case for case in SMALL if case.name == name)


def ids(cases: list[PoolCase]) -> list[str]:
    return [case.name for case in cases]


@dataclass(frozen=True)
class Pool:
    """One window over inputs of one shape, through the emulator."""

    shim: CudaShim
    case: PoolCase
    channels_last: bool
    dtype: torch.dtype
    flush: str = "end"
    shift: int = 0  # elements between an aligned address and the tensors

    @property
    def in_sizes(self) -> tuple[int, ...]:
        return (1,) * (4 - len(self.case.shape)) + self.case.shape

    @property
    def out_sizes(self) -> tuple[int, ...]:
        x = torch.empty(self.in_sizes, device="meta")
        return tuple(F.max_pool2d(x, *self.case.max_options()).shape)

    @property
    def offset_dtype(self) -> torch.dtype:
        return torch.uint8 if self.case.kernel[0] * self.case.kernel[1] <= 256 else torch.int32

    def shape(self) -> Tensor:
        case = self.case
        stride = case.stride or case.kernel
        fields = [*self.in_sizes, *self.out_sizes[2:]]
        for pair in (case.kernel, stride, case.padding, case.dilation):
            fields.extend(pair)
        return torch.tensor(fields, dtype=torch.int64)

    def call(self, launcher: str, *arguments: Tensor | int | bool | None) -> None:
        element = ELEMENTS.index(self.dtype)
        self.shim.call(launcher, self.shape(), self.channels_last, element, *arguments)

    def place(self, memory: Memory, sizes: Sequence[int], dtype: torch.dtype, name: str) -> Tensor:
        n, c, h, w = sizes
        flat = memory.allocate(n * c * h * w + self.shift, dtype, name)[self.shift :]
        return flat.view(n, h, w, c).permute(0, 3, 1, 2) if self.channels_last else flat.view(sizes)

    def run(
        self,
        launcher: str,
        inputs: list[Tensor],
        outputs: list[tuple[tuple[int, ...], torch.dtype]],
        *scalars: int | bool,
    ) -> list[Tensor]:
        """Calls launcher(shape, ..., scalars, inputs, outputs) in guarded memory."""
        with self.shim.memory(self.flush) as memory:
            given = [
                self.place(memory, x.shape, x.dtype, f"input {i}").copy_(x)
                for i, x in enumerate(inputs)
            ]
            made = [
                self.place(memory, sizes, dtype, f"output {i}")
                for i, (sizes, dtype) in enumerate(outputs)
            ]
            self.call(launcher, *scalars, *given, *made)
            return [t.clone() for t in made]

    def max_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = [(self.out_sizes, self.dtype), (self.out_sizes, self.offset_dtype)]
        y, offsets = self.run("max_pool2d_forward", [x.view(self.in_sizes)], outputs)
        return y, offsets

    def max_backward(self, grad: Tensor, offsets: Tensor) -> Tensor:
        return self.run("max_pool2d_backward", [grad, offsets], [(self.in_sizes, self.dtype)])[0]

    def gather(self, source: Tensor, offsets: Tensor) -> Tensor:
        return self.run("max_pool2d_gather", [source, offsets], [(self.out_sizes, self.dtype)])[0]

    def indices(self, offsets: Tensor) -> Tensor:
        with self.shim.memory(self.flush) as memory:
            given = self.place(memory, self.out_sizes, self.offset_dtype, "offsets").copy_(offsets)
            made = self.place(memory, self.out_sizes, torch.int64, "indices")
            self.shim.call("max_pool2d_indices", self.shape(), self.channels_last, given, made)
            return made.clone()

    def avg_forward(self, x: Tensor, include_pad: bool, divisor: int | None) -> Tensor:
        outputs = [(self.out_sizes, self.dtype)]
        x = x.view(self.in_sizes)
        return self.run("avg_pool2d_forward", [x], outputs, include_pad, divisor or 0)[0]

    def avg_backward(self, grad: Tensor, include_pad: bool, divisor: int | None) -> Tensor:
        outputs = [(self.in_sizes, self.dtype)]
        return self.run("avg_pool2d_backward", [grad], outputs, include_pad, divisor or 0)[0]


def gradient(pool, options: tuple, x: Tensor, grad: Tensor) -> Tensor:
    y = x.detach().clone().requires_grad_()
    pool(y, *options).backward(grad)
    assert y.grad is not None
    return y.grad


def assert_close(actual: Tensor, reference: Tensor, torchs: Tensor) -> None:
    """The parity rule; half types may also be one rounding of the largest value off."""
    assert actual.dtype == torchs.dtype
    if actual.dtype in (torch.bfloat16, torch.float16):
        epsilon = torch.finfo(actual.dtype).eps
        largest = reference.abs().max()
        assert (actual.double() - reference).abs().max() <= epsilon / 2 * largest
    else:
        assert_parity(actual, torchs, reference)


def check_max(pool: Pool, special: bool, seed: int = 0) -> None:
    """Values and indices bit for bit, gradients of small integers exactly."""
    options = pool.case.max_options()
    x = make_input(pool.in_sizes, False, pool.dtype, special, seed)
    expected, expected_indices = F.max_pool2d(x, *options, return_indices=True)
    y, offsets = pool.max_forward(x)
    finite = ~expected.isnan()
    assert torch.equal(y.isnan(), ~finite)
    assert_same_bits(y[finite], expected[finite])
    assert torch.equal(pool.indices(offsets), expected_indices)
    grad = torch.randint(-4, 5, pool.out_sizes).to(pool.dtype)
    oracle = torch.zeros(pool.in_sizes, dtype=torch.float64).flatten(2)
    oracle.scatter_add_(2, expected_indices.flatten(2), grad.double().flatten(2))
    actual = pool.max_backward(grad, offsets)
    assert torch.equal(actual.double(), oracle.view(pool.in_sizes))
    source = torch.randn(pool.in_sizes).to(pool.dtype)
    gathered = source.flatten(2).gather(2, expected_indices.flatten(2)).view(pool.out_sizes)
    assert torch.equal(pool.gather(source, offsets), gathered)


def check_avg(pool: Pool, include_pad: bool, divisor: int | None, seed: int = 0) -> None:
    options = (*pool.case.avg_options(), include_pad, divisor)
    x = make_input(pool.in_sizes, False, pool.dtype, False, seed)
    y = pool.avg_forward(x, include_pad, divisor)
    assert_close(y, F.avg_pool2d(x.double(), *options), F.avg_pool2d(x, *options))
    grad = torch.randn(pool.out_sizes, dtype=torch.float64).to(pool.dtype)
    actual = pool.avg_backward(grad, include_pad, divisor)
    oracle = gradient(F.avg_pool2d, options, x.double(), grad.double())
    assert_close(actual, oracle, gradient(F.avg_pool2d, options, x, grad))


# --- The cases of the CPU op ---------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("case", MAX_CASES, ids=ids(MAX_CASES))
def test_max_matches_torch(shim: CudaShim, case: PoolCase, channels_last: bool) -> None:
    for number, schedule in enumerate(SCHEDULES):
        shim.configure(schedule, seed=number)
        special = number % 2 == 1
        check_max(Pool(shim, case, channels_last, torch.float32, FLUSH[special]), special)


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("case", AVG_CASES, ids=ids(AVG_CASES))
def test_avg_matches_torch(shim: CudaShim, case: PoolCase, channels_last: bool) -> None:
    for number, schedule in enumerate(SCHEDULES):
        shim.configure(schedule, seed=number)
        pool = Pool(shim, case, channels_last, torch.float32, FLUSH[number % 2])
        check_avg(pool, *DIVISORS[number % len(DIVISORS)])


@pytest.mark.parametrize("seed", range(2))
def test_random_cases(shim: CudaShim, seed: int) -> None:
    for number, case in enumerate(random_cases(seed, 8)):
        pool = Pool(shim, case, number % 2 == 1, ELEMENTS[number % 4], FLUSH[number % 2])
        check_max(pool, number % 3 == 0, number)
        if case.dilation == (1, 1):
            check_avg(pool, *DIVISORS[number % 4], number)


# --- Every kernel, schedule and element type -----------------------------------------------------


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("case", SMALL, ids=ids(SMALL))
def test_schedules(shim: CudaShim, case: PoolCase, channels_last: bool, dtype: torch.dtype) -> None:
    for number, schedule in enumerate(SCHEDULES):
        shim.configure(schedule, seed=number)
        pool = Pool(shim, case, channels_last, dtype, FLUSH[number % 2])
        check_max(pool, number % 2 == 0)
        if case.dilation == (1, 1):
            check_avg(pool, *DIVISORS[number % 4])


def kernels_of(shim: CudaShim, pool: Pool) -> list[str]:
    shim.reset_counts()
    _, offsets = pool.max_forward(make_input(pool.in_sizes, False, pool.dtype, False))
    pool.max_backward(torch.ones(pool.out_sizes, dtype=pool.dtype), offsets)
    kernels = shim.kernels()
    assert len(kernels) == 2
    return [name for name in ("rows", "windows") if any(f"_{name}_" in k for k in kernels)]


@pytest.mark.parametrize(
    ("case", "channels_last", "expected"),
    [
        (small("rows"), False, ["rows"]),
        (small("rows"), True, []),  # three channels are no vector
        (small("windows"), True, ["windows"]),
        (small("padded_windows"), True, ["windows"]),
        (small("windows_and_rest"), True, ["windows"]),
        (small("apart_in_rows_only"), True, []),
        (small("overlapping"), True, []),
    ],
)
def test_which_kernels_run(
    shim: CudaShim, case: PoolCase, channels_last: bool, expected: list[str]
) -> None:
    assert kernels_of(shim, Pool(shim, case, channels_last, torch.float32)) == expected


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("case", SMALL[:6], ids=ids(SMALL[:6]))
def test_pointers_at_odd_elements(shim: CudaShim, case: PoolCase, dtype: torch.dtype) -> None:
    """Tensors that start anywhere take the kernels of one value per thread."""
    for channels_last in LAYOUTS:
        pool = Pool(shim, case, channels_last, dtype, "start", shift=1)
        check_max(pool, True)
        check_avg(pool, False, None)
        assert kernels_of(shim, pool) == []


def test_wide_accesses_are_used(shim: CudaShim) -> None:
    """2x2 windows: each of the 128 outputs reads 16 bytes and writes 4 + 1, in vectors."""
    pool = Pool(shim, PoolCase("one", (1, 4, 8, 16), (2, 2)), False, torch.float32)
    shim.reset_counts()
    pool.max_forward(torch.randn(pool.in_sizes))
    assert shim.counts().checked_accesses == 64 * (2 + 2)


def test_no_offsets_on_request(shim: CudaShim) -> None:
    pool = Pool(shim, small("overlapping"), True, torch.float32)
    x = torch.randn(pool.in_sizes)
    with shim.memory() as memory:
        given = pool.place(memory, pool.in_sizes, torch.float32, "input").copy_(x)
        made = pool.place(memory, pool.out_sizes, torch.float32, "output")
        pool.call("max_pool2d_forward", given, made, None)
        assert_same_bits(made.clone(), F.max_pool2d(x, *pool.case.max_options()))


def test_empty_batch_launches_nothing(shim: CudaShim) -> None:
    pool = Pool(shim, PoolCase("empty", (0, 3, 4, 4), (2, 2)), False, torch.float32)
    shim.reset_counts()
    y, _ = pool.max_forward(torch.empty(0, 3, 4, 4))
    assert y.shape == (0, 3, 2, 2)
    assert shim.counts().launches == 0


# --- What must fail ------------------------------------------------------------------------------


def test_a_wrong_winner_is_noticed(shim: CudaShim) -> None:
    pool = Pool(shim, small("overlapping"), True, torch.float32)
    x = torch.randn(pool.in_sizes)
    _, offsets = pool.max_forward(x)
    grad = torch.ones(pool.out_sizes)
    expected = gradient(F.max_pool2d, pool.case.max_options(), x, grad)
    assert torch.equal(pool.max_backward(grad, offsets), expected)
    offsets[0, 0, 1, 1] = (offsets[0, 0, 1, 1] + 1) % 9
    assert not torch.equal(pool.max_backward(grad, offsets), expected)


def test_an_input_too_small_is_an_invalid_access(shim: CudaShim) -> None:
    pool = Pool(shim, small("overlapping"), False, torch.float32)
    with shim.memory() as memory:
        short = memory.empty((2, 8, 6, 4), torch.float32, "short input")
        made = memory.empty(pool.out_sizes, torch.float32, "output")
        with pytest.raises(CudaShimError, match=r"past the end of .* of 'short input'"):
            pool.call("max_pool2d_forward", short, made, None)
