# SPDX-License-Identifier: MIT
"""conv_block2d against the separate operators: fused and composed calls, every instruction set."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import fastconv.functional as fastF
from fastconv import nn as fast_nn
from fastconv import runtime
from fastconv.models import LeNet5

OPS = torch.ops.fastconv
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
POOLS = ("none", "max", "avg")
# input [N, C, H, W], weight [out, C / groups, kh, kw], convolution options
FUSED = {
    "lenet_conv1": ((3, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "lenet_conv2": ((5, 6, 14, 14), (16, 6, 5, 5), {}),
    "colour": ((2, 3, 16, 16), (32, 3, 3, 3), {"padding": 1}),
    "odd_sizes": ((2, 7, 11, 13), (9, 7, 3, 4), {"padding": (1, 2)}),
    "one_channel": ((3, 1, 13, 39), (7, 1, 3, 3), {}),
    "many_channels": ((2, 20, 9, 9), (35, 20, 3, 3), {"padding": 1}),
    "tall_kernel": ((1, 2, 15, 8), (4, 2, 7, 1), {}),
    "one_window": ((4, 3, 5, 5), (17, 3, 4, 4), {}),
}
COMPOSED = {
    "strided": ((2, 4, 15, 15), (8, 4, 3, 3), {"stride": 2}),
    "dilated": ((2, 4, 15, 15), (8, 4, 3, 3), {"dilation": 2}),
    "grouped": ((2, 4, 12, 12), (8, 2, 3, 3), {"groups": 2}),
    "window_of_three": ((2, 4, 15, 15), (8, 4, 3, 3), {"pool_size": 3}),
    "overlapping": ((2, 4, 15, 15), (8, 4, 3, 3), {"pool_size": 3, "pool_stride": 2}),
    "large_image": ((1, 3, 140, 140), (8, 3, 3, 3), {}),
}


@pytest.fixture(params=runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with runtime.force_cpu_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def separate(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    activation: str,
    pool: str,
    pool_size: int = 2,
    pool_stride: int | None = None,
    **conv: object,
) -> Tensor:
    """torch's operators, one after the other."""
    z = ACTIVATIONS[activation](F.conv2d(x, w, b, **conv))  # type: ignore[arg-type]
    if pool == "none":
        return z
    return (F.max_pool2d if pool == "max" else F.avg_pool2d)(z, pool_size, pool_stride)


def block(x: Tensor, w: Tensor, b: Tensor | None, activation: str, pool: str, **options) -> Tensor:
    return fastF.conv_block2d(
        x, w, b, activation=activation, negative_slope=0.2, pool=pool, **options
    )


def make_leaves(case: tuple, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_size, w_size, _ = case
    x = torch.randn(x_size, generator=generator)
    w = torch.randn(w_size, generator=generator) / w_size[1:].__len__() ** 2
    b = torch.randn(w_size[0], generator=generator)
    return [t.to(dtype).requires_grad_() for t in (x, w, b)]


def results(run: Callable[..., Tensor], leaves: list[Tensor], options: dict) -> list[Tensor]:
    """The output and all gradients."""
    output = run(*leaves, **options)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def assert_parity(ours: Tensor, theirs: Tensor, oracle: Tensor) -> None:
    """Our error is at most twice torch's, plus 1e-6 of the result's rms."""
    rms = oracle.square().mean().sqrt().item()
    allowed = 2 * (theirs - oracle).abs().max().item() + 1e-6 * rms
    assert (ours - oracle).abs().max().item() <= allowed


def check_parity(case: tuple, activation: str, pool: str, seed: int = 0) -> None:
    options = {"activation": activation, "pool": pool, **case[2]}
    leaves = make_leaves(case, seed)
    ours = results(block, leaves, options)
    theirs = results(separate, leaves, options)
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    oracle = results(separate, doubles, options)
    for a, b, c in zip(ours, theirs, oracle, strict=True):
        assert a.shape == b.shape
        assert a.stride() == b.stride()
        assert_parity(a.double(), b.double(), c)


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", FUSED)
def test_fused_matches_torch(name: str, activation: str, isa: str) -> None:
    for pool in ("max", "avg"):
        check_parity(FUSED[name], activation, pool)
        for half in ("forward", "backward"):
            assert runtime.last_used_isa(f"conv_block2d_{half}") == isa


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", COMPOSED)
def test_composed_matches_torch(name: str, activation: str) -> None:
    before = runtime.last_used_algorithm()
    for pool in POOLS:
        case = COMPOSED[name]
        options = {k: v for k, v in case[2].items() if pool != "none" or "pool" not in k}
        check_parity((*case[:2], options), activation, pool)
        assert "strips" not in str(runtime.last_used_algorithm()), before


@pytest.mark.parametrize("name", FUSED)
def test_whole_numbers_are_exact(name: str, isa: str) -> None:
    """Sums of small integers have one result; ties are common among them."""
    case = FUSED[name]
    leaves = [torch.randint(-2, 3, t.shape).float().requires_grad_() for t in make_leaves(case)]
    for activation, pool in itertools.product(("none", "relu"), ("max", "avg")):
        options = {"activation": activation, "pool": pool, **case[2]}
        grads = []
        for run in (block, separate):
            output = run(*leaves, **options)
            grad = (torch.arange(output.numel()) % 9 - 4.0).reshape(output.shape) * 4
            grads.append([output.detach(), *torch.autograd.grad(output, leaves, grad)])
        for ours, theirs in zip(*grads, strict=True):
            assert torch.equal(ours, theirs)


def test_random_cases(isa: str) -> None:
    generator = torch.Generator().manual_seed(3)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for seed in range(25):
        kernel = (pick(1, 7), pick(1, 9))
        padding = (pick(0, 4), pick(0, 4))
        height, width = (max(k, 2) + pick(1, 14) for k in kernel)
        channels, out = pick(1, 20), pick(1, 40)
        case = ((pick(1, 4), channels, height, width), (out, channels, *kernel),
                {"padding": padding})  # fmt: skip
        activation = list(ACTIVATIONS)[seed % 5]
        check_parity(case, activation, ("max", "avg")[seed % 2], seed)


def test_nan_and_infinity_go_where_the_separate_operators_send_them(isa: str) -> None:
    for pool, activation in itertools.product(("max", "avg"), ACTIVATIONS):
        x, w, b = make_leaves(FUSED["lenet_conv2"])
        with torch.no_grad():
            x[0, 2, 5, 5] = float("nan")
            x[1, 0, 0, 0] = float("inf")
        ours, theirs = (run(x, w, b, activation, pool) for run in (block, separate))
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_last_nan_of_a_window_takes_the_gradient(isa: str) -> None:
    """One 1x1 kernel: the convolution's output is the input, and so is its gradient."""
    nan = float("nan")
    for activation in ("none", "relu"):
        x = torch.tensor([[1.0, nan, 2.0, 2.0], [nan, 3.0, 2.0, 1.0]]).reshape(1, 1, 2, 4)
        w = torch.ones(1, 1, 1, 1)
        grads = []
        for run in (block, separate):
            leaf = x.clone().requires_grad_()
            run(leaf, w, None, activation, "max").nan_to_num(0).sum()
            output = run(leaf, w, None, activation, "max")
            grads.append(torch.autograd.grad(output, leaf, torch.ones_like(output))[0])
        assert torch.equal(*grads)


def test_leaky_relu_scales_the_gradient_behind_nan(isa: str) -> None:
    """NaN is not above zero: torch's gradient there is the slope's, and ours has to be."""
    x = torch.tensor([[1.0, float("nan"), 2.0, 0.0], [-1.0, 3.0, -2.0, 1.0]]).reshape(1, 1, 2, 4)
    for pool in ("max", "avg"):
        leaf = x.clone().requires_grad_()
        bias = [torch.zeros(1, requires_grad=True) for _ in range(2)]
        ours, theirs = (
            torch.autograd.grad(
                run(leaf, torch.ones(1, 1, 1, 1), b, "leaky_relu", pool).sum(), (leaf, b)
            )
            for run, b in zip((block, separate), bias, strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_negative_slopes_below_zero_are_composed() -> None:
    x, w, b = make_leaves(FUSED["lenet_conv2"])
    ours = fastF.conv_block2d(x, w, b, activation="leaky_relu", negative_slope=-0.5, pool="max")
    theirs = F.max_pool2d(F.leaky_relu(F.conv2d(x, w, b), -0.5), 2)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_negative_control_one_changed_tap_fails() -> None:
    case = FUSED["lenet_conv2"]
    leaves = make_leaves(case)
    options = {"activation": "relu", "pool": "max"}
    theirs = results(separate, leaves, options)
    oracle = results(separate, [t.detach().double().requires_grad_() for t in leaves], options)
    with torch.no_grad():
        leaves[1][3, 2, 1, 1] += 1e-3
    ours = results(block, leaves, options)
    for i in (0, 1):
        with pytest.raises(AssertionError):
            assert_parity(ours[i].double(), theirs[i].double(), oracle[i])


# --- Inputs of every kind ------------------------------------------------------------------------


def test_views_and_other_layouts(isa: str) -> None:
    base = torch.randn(4, 8, 18, 36)
    w, b = torch.randn(5, 6, 3, 3), torch.randn(5)
    views = {
        "rows and columns": base[:, 1:7, 2:16, 3:19],
        "every second column": base[:, :6, :, ::2],
        "transposed": base[:, :6].transpose(2, 3),
        "expanded": base[:1, :6].expand(3, -1, -1, -1),
        "channels_last": base[:, :6].contiguous(memory_format=torch.channels_last),
        "unbatched": base[0, :6],
    }
    for name, view in views.items():
        outputs = []
        for run in (block, separate):
            leaf = view.detach().requires_grad_()
            weight = w.clone().requires_grad_()
            output = run(leaf, weight, b, "relu", "max")
            grads = torch.autograd.grad(output, (leaf, weight), torch.ones_like(output))
            outputs.append((output, *grads))
        for ours, theirs in zip(*outputs, strict=True):
            assert ours.shape == theirs.shape, name
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4), name
        assert outputs[0][0].stride() == outputs[1][0].stride(), name


def test_gradients_of_any_layout_are_accepted(isa: str) -> None:
    x, w, b = make_leaves(FUSED["lenet_conv2"])
    output = block(x, w, b, "relu", "max")
    grad = torch.randn(output.shape)
    for g in (grad.contiguous(memory_format=torch.channels_last),
              grad.transpose(2, 3), grad[:1, :1, :1, :1].expand_as(output)):  # fmt: skip
        ours = torch.autograd.grad(output, (x, w, b), g, retain_graph=True)
        theirs = torch.autograd.grad(separate(x, w, b, "relu", "max"), (x, w, b), g)
        for a, c in zip(ours, theirs, strict=True):
            assert torch.allclose(a, c, rtol=1e-4, atol=1e-4)


def test_arguments_that_only_the_operator_understands() -> None:
    """Integers of other kinds, lists, subclasses and modes reach the operator all the same."""
    x, w, b = (t.detach() for t in make_leaves(FUSED["lenet_conv1"]))
    expected = block(x, w, b, "relu", "max", padding=2)
    two = numpy.int64(2)
    for padding, size in ((two, two), ([2, 2], [2, 2]), ((two, 2), (2, two))):
        got = block(x, w, b, "relu", "max", padding=padding, pool_size=size)
        assert torch.equal(got, expected)
    seen: list[object] = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    block(x.as_subclass(Watched), w, b, "relu", "max", padding=2)
    with Mode():
        block(x, w, b, "relu", "max", padding=2)
        fastF.mlp(x.flatten(1), [torch.ones(3, 784)], [torch.ones(3)])
    assert [OPS.conv_block2d.default, OPS.conv_block2d.default, OPS.mlp.default] == [
        f for f in seen if isinstance(f, torch._ops.OpOverload)
    ]
    traced = torch.fx.symbolic_trace(lambda t: fastF.conv_block2d(t, w, b, pool="max"))
    assert torch.equal(traced(x), fastF.conv_block2d(x, w, b, pool="max"))


def test_empty_batch() -> None:
    x = torch.randn(0, 6, 14, 14, requires_grad=True)
    w, b = torch.randn(16, 6, 5, 5, requires_grad=True), torch.randn(16, requires_grad=True)
    output = block(x, w, b, "relu", "max")
    assert output.shape == (0, 16, 5, 5)
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert torch.equal(w.grad, torch.zeros_like(w))
    assert torch.equal(b.grad, torch.zeros_like(b))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_composed(dtype: torch.dtype) -> None:
    leaves = make_leaves(FUSED["lenet_conv2"], dtype=dtype)
    options = {"activation": "relu", "pool": "max"}
    for a, b in zip(
        results(block, leaves, options), results(separate, leaves, options), strict=True
    ):
        assert a.dtype == dtype
        assert torch.allclose(a, b)


def test_only_what_is_asked_for_is_computed() -> None:
    x, w, b = make_leaves(FUSED["lenet_conv2"])
    all_grads = torch.autograd.grad(block(x, w, b, "tanh", "max").sum(), (x, w, b))
    for wanted in ((0,), (1,), (2,), (0, 2), (1, 2)):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate((x, w, b))]
        output = block(*leaves, "tanh", "max").sum()
        grads = torch.autograd.grad(output, [leaves[i] for i in wanted])
        for i, grad in zip(wanted, grads, strict=True):
            assert torch.equal(grad, all_grads[i])


def test_without_bias(isa: str) -> None:
    for pool in ("max", "avg"):
        x, w, _ = make_leaves(FUSED["colour"])
        for activation in ("relu", "tanh"):
            ours = torch.autograd.grad(
                block(x, w, None, activation, pool, padding=1).square().sum(), (x, w)
            )
            theirs = torch.autograd.grad(
                separate(x, w, None, activation, pool, padding=1).square().sum(), (x, w)
            )
            for a, b in zip(ours, theirs, strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_bitwise_the_same_every_time(isa: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for pool in ("max", "avg"):
        x = torch.randn(33, 6, 14, 14, requires_grad=True)
        _, w, b = make_leaves(FUSED["lenet_conv2"])
        runs = [results(block, [x, w, b], {"activation": "tanh", "pool": pool}) for _ in range(3)]
        for other in runs[1:]:
            assert all(torch.equal(a, c) for a, c in zip(runs[0], other, strict=True))


def test_threads_give_the_same_values(isa: str) -> None:
    x = torch.randn(33, 6, 14, 14, requires_grad=True)
    _, w, b = make_leaves(FUSED["lenet_conv2"])
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(results(block, [x, w, b], {"activation": "relu", "pool": "max"}))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    for a, c in zip(*runs, strict=True):
        assert torch.allclose(a, c, rtol=1e-4, atol=1e-4)


# --- Differentiation, transforms, compilation ----------------------------------------------------


@pytest.mark.parametrize("activation", ["none", "sigmoid", "tanh", "leaky_relu"])
@pytest.mark.parametrize("pool", POOLS)
def test_gradcheck(activation: str, pool: str) -> None:
    x, w, b = make_leaves(((2, 2, 6, 6), (3, 2, 3, 3), {}), dtype=torch.float64)

    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return block(x, w, b, activation, pool, padding=1)

    assert torch.autograd.gradcheck(run, (x, w, b))
    assert torch.autograd.gradgradcheck(run, (x, w, b))


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_second_derivative_of_fused_calls(pool: str) -> None:
    leaves = make_leaves(FUSED["lenet_conv2"])
    second = []
    for run in (block, separate):
        output = run(*leaves, "tanh", pool)
        grads = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        total = sum(g.square().sum() for g in grads)
        second.append(torch.autograd.grad(total, leaves))
    for ours, theirs in zip(*second, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_opcheck() -> None:
    x, w, b = make_leaves(FUSED["lenet_conv2"])
    torch.library.opcheck(
        OPS.conv_block2d.default, (x, w, b, 1, 0, 1, 1, "relu", 0.01, "max", 2, ())
    )
    torch.library.opcheck(OPS.conv_block2d.default, (x, w, None, 2, 1, 1, 1, "tanh"))
    plain = [t.detach() for t in (x, w, b)]
    for pool in ("max", "avg"):
        arguments = (*plain, [1, 1], "relu", 0.01, pool)
        torch.library.opcheck(OPS._conv_block2d_training.default, arguments)
        output, offsets = OPS._conv_block2d_training(*arguments)
        torch.library.opcheck(
            OPS._conv_block2d_backward.default,
            (torch.ones_like(output), output, offsets, *arguments, [True, True, True]),
        )


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_compiles_as_one_graph(pool: str) -> None:
    leaves = make_leaves(FUSED["lenet_conv2"])
    compiled = torch.compile(
        lambda x, w, b: block(x, w, b, "relu", pool), fullgraph=True, backend="aot_eager"
    )
    expected = results(block, leaves, {"activation": "relu", "pool": pool})
    for a, b in zip(results(compiled, leaves, {}), expected, strict=True):
        assert torch.equal(a, b)


def test_torch_func_and_forward_mode() -> None:
    x, w, b = (t.detach() for t in make_leaves(FUSED["lenet_conv2"]))

    def loss(run: Callable[..., Tensor], w: Tensor) -> Tensor:
        return run(x, w, b, "tanh", "max").square().sum()

    ours, theirs = (
        torch.func.grad(lambda w, run=run: loss(run, w))(w) for run in (block, separate)
    )
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    mapped = torch.func.vmap(lambda image: block(image[None], w, b, "relu", "avg")[0])(x)
    assert torch.allclose(mapped, separate(x, w, b, "relu", "avg"), rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [
            forward_ad.unpack_dual(run(dual, w, b, "relu", "max")).tangent
            for run in (block, separate)
        ]
    assert torch.allclose(*tangents, rtol=1e-4, atol=1e-4)


def test_autocast_computes_in_float32() -> None:
    x, w, b = make_leaves(FUSED["lenet_conv2"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(x.bfloat16(), w, b, "relu", "max")
    assert output.dtype == torch.float32
    assert torch.equal(output, block(x.bfloat16().float(), w, b, "relu", "max"))


# --- What is kept for the backward pass ----------------------------------------------------------


def saved_bytes(run: Callable[[], Tensor], own: list[Tensor]) -> int:
    """Bytes of the tensors saved by a forward pass, each storage once, without `own`."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    for tensor in own:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del output
    return sum(storages.values())


def test_saves_pooled_values_and_one_byte_per_maximum() -> None:
    x, w, b = make_leaves(FUSED["lenet_conv2"])
    outputs = 5 * 16 * 5 * 5
    assert saved_bytes(lambda: block(x, w, b, "relu", "max"), [x, w, b]) == outputs * (4 + 1)
    assert saved_bytes(lambda: block(x, w, b, "tanh", "avg"), [x, w, b]) == outputs * 4


def test_lenet_keeps_a_quarter_of_torchs_activations() -> None:
    images = torch.randn(64, 1, 28, 28)
    kept = []
    for backend in ("fastconv", "torch"):
        model = LeNet5(backend=backend)
        own = [images, *model.parameters()]
        kept.append(saved_bytes(lambda model=model: model(images), own))
    assert kept[0] <= kept[1] / 4


# --- Errors, and the layer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "conv_block2d: expected activation one of none, relu"),
        ({"pool": "median"}, "conv_block2d: expected pool one of none, max, avg, got 'median'"),
        ({"stride": 1.5}, "conv_block2d: expected stride of integers, got 1.5"),
        ({"pool_size": "2"}, "conv_block2d: expected pool_size of integers"),
        ({"padding": "some"}, "expected padding 'same', 'valid' or integers"),
        ({"padding": -1, "pool": "max"}, "expected padding of at least 0"),
        ({"pool": "max", "pool_size": 40}, "expected a window no larger than the padded input"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    x, w, b = (t.detach() for t in make_leaves(FUSED["lenet_conv2"]))
    with pytest.raises(ValueError, match=message):
        fastF.conv_block2d(x, w, b, **options)


def test_bad_shapes_are_refused() -> None:
    x, w, b = (t.detach() for t in make_leaves(FUSED["lenet_conv2"]))
    with pytest.raises(ValueError, match="expected weight of shape"):
        block(x, w[:, :3], b, "relu", "max")
    with pytest.raises(ValueError, match="expected bias of shape"):
        block(x, w, b[:3], "relu", "max")
    with pytest.raises(ValueError, match="expected input of shape"):
        block(x[0, 0], w, b, "relu", "max")
    with pytest.raises(ValueError, match="expected a call that the fused kernels serve"):
        OPS._conv_block2d_training(x.double(), w.double(), b.double(), [0, 0], "relu", 0.01, "max")
    output, offsets = OPS._conv_block2d_training(x, w, b, [0, 0], "relu", 0.01, "max")
    with pytest.raises(ValueError, match="expected offsets of shape"):
        OPS._conv_block2d_backward(
            output, output, offsets[:, 1:], x, w, b, [0, 0], "relu", 0.01, "max", [True] * 3
        )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_layer_matches_torchs_layers(padding_mode: str) -> None:
    torch.manual_seed(0)
    ours = fast_nn.ConvBlock2d(
        3, 8, 3, padding=1, padding_mode=padding_mode, activation="relu", pool="max"
    )
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding_mode)
    theirs = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    assert list(ours.state_dict()) == list(conv.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), conv.parameters(), strict=True))
    x = torch.randn(2, 3, 12, 12)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(x), ours(x))
    assert "activation=relu, pool=max" in repr(ours)


def test_layer_takes_same_padding() -> None:
    layer = fast_nn.ConvBlock2d(2, 4, 4, padding="same", activation="tanh", pool="avg")
    x = torch.randn(3, 2, 10, 10)
    expected = F.avg_pool2d(torch.tanh(F.conv2d(x, layer.weight, layer.bias, padding="same")), 2)
    assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
