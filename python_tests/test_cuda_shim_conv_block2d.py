# SPDX-License-Identifier: MIT
"""conv_block2d's CUDA kernels in the emulator: the cases, oracle and parity rule of the CPU op."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from cuda_shim import SCHEDULES, CudaShim, CudaShimError, schedule_of_test
from reference import assert_parity
from test_conv_block2d import ACTIVATIONS, FUSED, POOLS, separate
from torch import Tensor

SLOPE = 0.2
# input [N, C, H, W], weight [out, C, kh, kw], convolution options; beside those of the CPU op.
CASES = {
    **FUSED,
    "unpooled_edges": ((2, 4, 9, 7), (5, 4, 3, 3), {"padding": 1}),
    "seven": ((1, 2, 12, 11), (10, 2, 7, 7), {"padding": 3}),
    "one_by_one": ((3, 5, 6, 4), (8, 5, 1, 1), {}),
    "two_by_six": ((2, 3, 7, 16), (13, 3, 2, 6), {"padding": (1, 0)}),
    "padding_beyond_the_kernel": ((2, 2, 4, 5), (4, 2, 3, 3), {"padding": (4, 3)}),
    "tiles": ((1, 3, 37, 43), (6, 3, 3, 3), {"padding": 1}),
    "chunks_of_channels": ((1, 28, 10, 16), (16, 28, 3, 3), {"padding": 1}),
    "deep": ((1, 256, 3, 4), (3, 256, 1, 1), {}),
    "batch": ((33, 2, 4, 4), (3, 2, 3, 3), {}),
}
# What every schedule runs: each kernel, several tiles and blocks, windows at the edges.
SMALL = {
    "five": ((2, 2, 9, 8), (6, 2, 5, 5), {"padding": 2}),
    "three": ((3, 3, 6, 7), (9, 3, 3, 3), {"padding": 1}),
    "two_by_three": ((2, 5, 6, 5), (4, 5, 2, 3), {}),
    "seven": ((1, 1, 9, 9), (3, 1, 7, 7), {"padding": 3}),
}


@dataclass
class Call:
    """One forward and backward pass through the launchers."""

    shim: CudaShim
    activation: str
    pool: str
    padding: tuple[int, int]
    slope: float = SLOPE
    wanted: tuple[bool, bool, bool] = (True, True, True)
    offsets: Tensor | None = field(default=None, init=False)

    def sizes(self, x: Tensor, w: Tensor) -> tuple[int | float, ...]:
        return (
            *x.shape,
            w.shape[0],
            *w.shape[2:],
            *self.padding,
            [*ACTIVATIONS].index(self.activation),
            self.slope,
            POOLS.index(self.pool),
        )

    def run(self, x: Tensor, w: Tensor, b: Tensor | None, grad: Tensor | None = None,
            flush: str = "end") -> list[Tensor | None]:  # fmt: skip
        """The output, then the gradients that are wanted."""
        sizes = self.sizes(x, w)
        assert self.shim.value("conv_block2d_applies", *sizes)
        output_size = pooled_size(x, w, self.padding, self.pool)
        with self.shim.memory(flush) as memory:
            # An expanded batch has one image in memory.
            x = (
                memory.copy(x[:1], "input").expand_as(x)
                if x.stride(0) == 0
                else memory.copy(x, "input")
            )
            w = memory.copy(w, "weight")
            b = None if b is None else memory.copy(b, "bias")
            output = memory.empty(output_size, torch.float32, "output")
            offsets = None
            if self.pool == "max":
                offsets = memory.empty(output_size, torch.uint8, "offsets")
            self.shim.call("conv_block2d_forward", *sizes, x, *x.stride(), w, b, output, offsets)
            result: list[Tensor | None] = [output.clone()]
            self.offsets = None if offsets is None else offsets.clone()
            if grad is None:
                return result
            like = ((x, "grad_input"), (w, "grad_weight"), (w[:, 0, 0, 0], "grad_bias"))
            grads = [
                memory.empty(t.shape, torch.float32, name) if wanted else None
                for (t, name), wanted in zip(like, self.wanted, strict=True)
            ]
            bytes_ = self.shim.value(
                "conv_block2d_backward_workspace", *sizes, self.wanted[1] or self.wanted[2]
            )
            workspace = memory.allocate(bytes_ // 4, torch.float32, "workspace", 256)
            grad = memory.copy(grad, "grad_output")
            self.shim.call("conv_block2d_backward", *sizes, grad, output, offsets, x, *x.stride(),
                           w, b, *grads, workspace)  # fmt: skip
            return result + [None if g is None else g.clone() for g in grads]


def pooled_size(x: Tensor, w: Tensor, padding: tuple[int, int], pool: str) -> list[int]:
    window = 1 if pool == "none" else 2
    size = [(x.shape[i + 2] + 2 * padding[i] - w.shape[i + 2] + 1) // window for i in (0, 1)]
    return [x.shape[0], w.shape[0], *size]


def padding_of(case: tuple) -> tuple[int, int]:
    padding = case[2].get("padding", 0)
    return (padding, padding) if isinstance(padding, int) else padding


def tensors(case: tuple, pool: str, seed: int = 0) -> list[Tensor]:
    """Input, weight, bias and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    x_size, w_size, _ = case
    x = torch.randn(x_size, generator=generator)
    w = torch.randn(w_size, generator=generator) / (w_size[1] * w_size[2] * w_size[3]) ** 0.5
    b = torch.randn(w_size[0], generator=generator)
    grad = torch.randn(pooled_size(x, w, padding_of(case), pool), generator=generator)
    return [x, w, b, grad]


def by_torch(case: tuple, activation: str, pool: str, x: Tensor, w: Tensor, b: Tensor | None,
             grad: Tensor) -> list[Tensor]:  # fmt: skip
    leaves = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
    output = separate(leaves[0], leaves[1], leaves[2] if b is not None else None, activation, pool,
                      **case[2])  # fmt: skip
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def check(shim: CudaShim, case: tuple, activation: str, pool: str, *, seed: int = 0,
          flush: str = "end") -> None:  # fmt: skip
    parts = tensors(case, pool, seed)
    ours = Call(shim, activation, pool, padding_of(case)).run(*parts, flush)
    theirs = by_torch(case, activation, pool, *parts)
    oracle = by_torch(case, activation, pool, *(t.double() for t in parts))
    for name, a, t, o in zip(("output", "input", "weight", "bias"), ours, theirs, oracle,
                             strict=True):  # fmt: skip
        assert_parity(a, t, o, name)


@pytest.mark.parametrize("name", CASES)
def test_matches_torch(shim: CudaShim, name: str) -> None:
    for i, pool in enumerate(POOLS):
        for activation in ("relu", ("tanh", "sigmoid", "leaky_relu")[i]):
            check(shim, CASES[name], activation, pool)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SMALL)
def test_every_schedule(shim: CudaShim, name: str, schedule: str) -> None:
    shim.configure(schedule, seed=7)
    for pool, flush in itertools.product(POOLS, ("end", "start")):
        check(shim, SMALL[name], "tanh" if pool == "avg" else "relu", pool, flush=flush)
    check(shim, SMALL[name], "none", "avg")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(shim: CudaShim, activation: str) -> None:
    for pool in POOLS:
        check(shim, SMALL["three"], activation, pool)


def test_which_kernels_ran(shim: CudaShim) -> None:
    """Behind max pooling nothing of the convolution's full size is computed or written."""
    for pool, activation, expected in [
        ("max", "relu", ["direct", "grad_weight", "add_partials", "add_partials", "direct"]),
        ("avg", "none",
         ["spread_grad", "grad_weight", "add_partials", "add_partials", "direct"]),
        ("avg", "tanh", ["direct", "grad_weight", "add_partials", "add_partials", "direct"]),
        ("none", "relu",
         ["output_grad", "grad_weight", "add_partials", "add_partials", "direct"]),
        ("none", "none", ["grad_weight", "add_partials", "add_partials", "direct"]),
    ]:  # fmt: skip
        parts = tensors(SMALL["five"], pool)
        shim.reset_counts()
        Call(shim, activation, pool, (2, 2)).run(*parts)
        # FC_LAUNCH notes a kernel's name with its template arguments.
        names = [name for name in shim.kernels() if "conv_block2d_" in name]
        short = [n.split("conv_block2d_")[1].split("_kernel")[0] for n in names]
        backward = expected if pool != "max" else expected[1:]
        assert short == ["direct", *backward], (pool, activation)


def test_whole_numbers_are_exact(shim: CudaShim) -> None:
    """Sums of small integers have one result; ties are common among them."""
    for name in ("lenet_conv2", "odd_sizes", "unpooled_edges", "padding_beyond_the_kernel"):
        for activation, pool in itertools.product(("none", "relu"), POOLS):
            case = CASES[name]
            generator = torch.Generator().manual_seed(2)
            x, w, b, grad = (
                torch.randint(-2, 3, t.shape, generator=generator).float()
                for t in tensors(case, pool)
            )
            ours = Call(shim, activation, pool, padding_of(case)).run(x, w, b, 4 * grad)
            theirs = by_torch(case, activation, pool, x, w, b, 4 * grad)
            for a, t in zip(ours, theirs, strict=True):
                assert torch.equal(a, t), (name, activation, pool)


def test_random_cases(shim: CudaShim) -> None:
    generator = torch.Generator().manual_seed(3)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for seed in range(20):
        kernel = (pick(1, 7), pick(1, 7))
        padding = (pick(0, 4), pick(0, 4))
        height, width = (max(k, 2) + pick(1, 12) for k in kernel)
        channels, out = pick(1, 5), pick(1, 20)
        case = ((pick(1, 4), channels, height, width), (out, channels, *kernel),
                {"padding": padding})  # fmt: skip
        shim.configure(schedule_of_test(f"{seed}"), seed=seed, multiprocessors=pick(1, 132))
        check(shim, case, [*ACTIVATIONS][seed % 5], POOLS[seed % 3], seed=seed)


# --- NaN, ties, infinities -----------------------------------------------------------------------


def test_nan_and_infinity_go_where_the_separate_operators_send_them(shim: CudaShim) -> None:
    case = ((2, 2, 8, 8), (5, 2, 3, 3), {})
    for pool, activation in itertools.product(POOLS, ACTIVATIONS):
        x, w, b, _ = tensors(case, pool)
        x[0, 1, 5, 5] = float("nan")
        x[1, 0, 0, 0] = float("inf")
        (ours,) = Call(shim, activation, pool, (0, 0)).run(x, w, b)
        theirs = separate(x, w, b, activation, pool)
        assert torch.equal(ours.isnan(), theirs.isnan()), (pool, activation)
        assert torch.equal(ours.isinf(), theirs.isinf()), (pool, activation)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_first_of_equals_and_the_last_nan_take_the_gradient(shim: CudaShim) -> None:
    """One 1x1 kernel: the convolution's output is the input, and so is its gradient."""
    nan = float("nan")
    x = torch.tensor([[1.0, nan, 2.0, 2.0, -1.0, -2.0, -1.0, 3.0],
                      [nan, 3.0, 2.0, 1.0, -1.0, -1.0, 3.0, 3.0]]).reshape(1, 1, 2, 8)  # fmt: skip
    w = torch.ones(1, 1, 1, 1)
    for activation in ("none", "relu", "leaky_relu"):
        leaf = x.clone().requires_grad_()
        output = separate(leaf, w, None, activation, "max")
        expected = torch.autograd.grad(output, leaf, torch.ones_like(output))[0]
        call = Call(shim, activation, "max", (0, 0), wanted=(True, False, False))
        _, grad, _, _ = call.run(x, w, None, torch.ones(1, 1, 1, 4))
        assert torch.equal(grad.nonzero(), expected.nonzero()), activation
        assert torch.allclose(grad, expected, equal_nan=True), activation
    assert call.offsets is not None
    assert call.offsets.flatten().tolist() == [2, 0, 0, 1]


def test_offsets_number_the_winning_taps(shim: CudaShim) -> None:
    x, w, b, _ = tensors(SMALL["five"], "max")
    call = Call(shim, "none", "max", (2, 2))
    call.run(x, w, b)
    z = F.conv2d(x, w, b, padding=2)
    _, indices = F.max_pool2d(z, 2, return_indices=True)
    row, column = indices // z.shape[3], indices % z.shape[3]
    assert torch.equal(call.offsets, (row % 2 * 2 + column % 2).to(torch.uint8))


# --- Inputs of every kind ------------------------------------------------------------------------


def test_inputs_of_any_strides(shim: CudaShim) -> None:
    base = torch.randn(4, 8, 10, 20, generator=torch.Generator().manual_seed(1))
    w, b = torch.randn(5, 6, 3, 3) / 7, torch.randn(5)
    views = {
        "rows and columns": base[:, 1:7, 2:9, 3:12],
        "every second column": base[:, :6, :, ::2],
        "transposed": base[:, :6].transpose(2, 3),
        "expanded": base[:1, :6].expand(3, -1, -1, -1),
        "channels_last": base[:, :6].contiguous(memory_format=torch.channels_last),
    }
    for name, view in views.items():
        for pool in ("max", "avg"):
            grad = torch.randn(pooled_size(view, w, (0, 0), pool))
            ours = Call(shim, "tanh", pool, (0, 0)).run(view, w, b, grad)
            theirs = by_torch((None, None, {}), "tanh", pool, view, w, b, grad)
            for a, t in zip(ours, theirs, strict=True):
                assert torch.allclose(a, t, rtol=1e-4, atol=1e-5), name


def test_only_what_is_asked_for_is_computed(shim: CudaShim) -> None:
    for pool in POOLS:
        parts = tensors(SMALL["three"], pool)
        everything = Call(shim, "tanh", pool, (1, 1)).run(*parts)
        for wanted in itertools.product((False, True), repeat=3):
            some = Call(shim, "tanh", pool, (1, 1), wanted=wanted).run(*parts)
            for part, whole, asked in zip(some[1:], everything[1:], wanted, strict=True):
                assert (part is not None) == asked
                assert part is None or torch.equal(part, whole)


def test_without_bias(shim: CudaShim) -> None:
    for pool in POOLS:
        x, w, _, grad = tensors(SMALL["three"], pool)
        call = Call(shim, "tanh", pool, (1, 1), wanted=(True, True, False))
        ours = call.run(x, w, None, grad)[:3]
        theirs = by_torch(SMALL["three"], "tanh", pool, x, w, None, grad)
        for a, t in zip(ours, theirs, strict=True):
            assert torch.allclose(a, t, rtol=1e-4, atol=1e-5)


def test_empty_batch_launches_nothing(shim: CudaShim) -> None:
    shim.reset_counts()
    x, w = torch.empty(0, 2, 6, 6), torch.randn(3, 2, 3, 3)
    Call(shim, "relu", "max", (0, 0), wanted=(True, False, False)).run(
        x, w, None, torch.empty(0, 3, 2, 2)
    )
    assert shim.counts().launches == 0


@pytest.mark.parametrize("pool", POOLS)
def test_bitwise_the_same_under_every_schedule(shim: CudaShim, pool: str) -> None:
    parts = tensors(((9, 3, 10, 10), (7, 3, 3, 3), {"padding": 1}), pool)
    runs = []
    for seed, schedule in enumerate(SCHEDULES):
        shim.configure(schedule, seed=seed)
        runs.append(Call(shim, "tanh", pool, (1, 1)).run(*parts))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


# --- What is refused, and controls ---------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": (8, 3)},
        {"kernel": (3, 8)},
        {"channels": 257, "kernel": (1, 1)},
        {"channels": 64, "kernel": (3, 3)},
        {"channels": 16, "out": 64, "size": (56, 56)},
        {"activation": "leaky_relu", "slope": -0.5},
        {"activation": "leaky_relu", "slope": float("nan")},
        {"pool": "max", "size": (3, 3)},
        {"out": 70_000},
        {"size": (1 << 16, 1 << 16)},
    ],
)
def test_shapes_that_are_left_to_the_composed_operators(shim: CudaShim, change: dict) -> None:
    def applies(channels=3, out=8, size=(16, 16), kernel=(3, 3), activation="relu", slope=0.1,
                pool="max"):  # fmt: skip
        return shim.value(
            "conv_block2d_applies", 2, channels, *size, out, *kernel, 0, 0,
            [*ACTIVATIONS].index(activation), slope, POOLS.index(pool),
        )  # fmt: skip

    assert applies()
    assert not applies(**change)


def test_negative_control_one_changed_value_fails(shim: CudaShim) -> None:
    for pool, part in itertools.product(POOLS, range(4)):
        case = SMALL["five"]
        parts = tensors(case, pool)
        theirs = by_torch(case, "tanh", pool, *parts)
        oracle = by_torch(case, "tanh", pool, *(t.double() for t in parts))
        # Each of the operands wrong by a little shows in each result that depends on it.
        parts[part].view(-1)[parts[part].numel() // 2] += 1e-3
        ours = Call(shim, "tanh", pool, (2, 2)).run(*parts)
        depends = [(0, 2, 3), (0, 1, 3), (0,), (1, 2, 3)][part]
        for result in depends:
            with pytest.raises(AssertionError):
                assert_parity(ours[result], theirs[result], oracle[result], "")


def test_negative_control_one_changed_tap_fails(shim: CudaShim) -> None:
    """The backward pass follows the recorded taps."""
    x, w, b, grad = tensors(SMALL["five"], "max")
    expected = Call(shim, "relu", "max", (2, 2)).run(x, w, b, grad)
    call = Call(shim, "relu", "max", (2, 2))
    output = expected[0]
    call.run(x, w, b)
    taps = call.offsets
    assert taps is not None
    at = output.view(-1).argmax()
    taps.view(-1)[at] ^= 3
    sizes = call.sizes(x, w)
    with shim.memory() as memory:
        x, w = memory.copy(x, "input"), memory.copy(w, "weight")
        grads = [memory.empty(t.shape, torch.float32, "grad") for t in (x, w, b)]
        bytes_ = shim.value("conv_block2d_backward_workspace", *sizes, True)
        workspace = memory.allocate(bytes_ // 4, torch.float32, "workspace", 256)
        shim.call("conv_block2d_backward", *sizes, memory.copy(grad, "grad"),
                  memory.copy(output, "output"), memory.copy(taps, "offsets"), x, *x.stride(), w,
                  memory.copy(b, "bias"), *grads, workspace)  # fmt: skip
        assert not torch.equal(grads[0], expected[1])
        assert not torch.equal(grads[1], expected[2])
        assert torch.equal(grads[2], expected[3])


def test_negative_control_a_small_output_is_noticed(shim: CudaShim) -> None:
    x, w, b, _ = tensors(SMALL["three"], "max")

    def overrun() -> None:
        with shim.memory() as memory:
            size = pooled_size(x, w, (1, 1), "max")
            short = memory.empty([size[0], size[1] - 1, *size[2:]], torch.float32, "output")
            mine = memory.copy(x, "input")
            sizes = Call(shim, "relu", "max", (1, 1)).sizes(x, w)
            shim.call("conv_block2d_forward", *sizes, mine, *mine.stride(),
                      memory.copy(w, "weight"), memory.copy(b, "bias"), short, None)  # fmt: skip

    with pytest.raises(CudaShimError):
        overrun()
