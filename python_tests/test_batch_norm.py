# SPDX-License-Identifier: MIT
"""batch_norm and its layers against torch: instruction sets, layouts, training and eval."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv.functional as fastF
from fastconv import nn as fast_nn
from fastconv import runtime

OPS = torch.ops.fastconv
SHAPES = [(2, 3, 7, 7), (5, 17), (3, 70, 16), (1, 2, 42, 50), (9, 5, 33, 1), (600, 66), (7, 1),
          (70, 4, 10, 10), (3, 20, 4, 5, 6), (4, 34, 1, 1), (40, 70, 27)]  # fmt: skip
STATISTICS = ("running_mean", "running_var")


@pytest.fixture(params=runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with runtime.force_cpu_isa(request.param):
        yield request.param


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if channels_last and x.dim() in formats:
        return x.contiguous(memory_format=formats[x.dim()])
    return x


def make_inputs(
    shape: tuple[int, ...], mean: float = 0.5, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    channels = shape[1]

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    tensors = {
        "input": randn(*shape) + mean,
        "running_mean": randn(channels) + mean,
        "running_var": randn(channels).square() + 0.5,
        "weight": randn(channels),
        "bias": randn(channels),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def results(
    function: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    training: bool,
    mask: Tensor | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Output, all gradients and what became of the statistics; the incoming gradient is zero where
    ``mask`` is."""
    leaves = {
        name: t.detach().clone(memory_format=torch.preserve_format) for name, t in tensors.items()
    }
    wanted = [leaves[name].requires_grad_() for name in leaves if name not in STATISTICS]
    output = function(**leaves, training=training, momentum=0.3, **options)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    grad = grad if mask is None else grad * mask
    grads = torch.autograd.grad(output, wanted, grad.as_strided_(grad.shape, grad.stride()))
    names = [f"grad_{name}" for name in leaves if name not in STATISTICS]
    moved = {name: leaves[name] for name in STATISTICS if name in leaves}
    return {"output": output.detach(), **dict(zip(names, grads, strict=True)), **moved}


def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def assert_parity(mine: Tensor, theirs: Tensor, oracle: Tensor, name: str = "") -> None:
    """Our error is at most twice torch's, plus 1e-6 of the result's rms."""
    rms = oracle.square().mean().sqrt().item()
    allowed = 2 * (theirs.double() - oracle).abs().max().item() + 1e-6 * rms
    error = (mine.double() - oracle).abs().max().item()
    assert error <= allowed, f"{name}: off by {error}, allowed {allowed}"


def check(tensors: dict[str, Tensor], training: bool) -> None:
    mine = results(fastF.batch_norm, tensors, training)
    theirs = results(F.batch_norm, tensors, training)
    oracle = results(F.batch_norm, doubled(tensors), training)
    for name in oracle:
        assert mine[name].shape == theirs[name].shape
        assert_parity(mine[name], theirs[name], oracle[name], name)
    assert mine["output"].stride() == theirs["output"].stride()
    assert mine["grad_input"].stride() == theirs["grad_input"].stride()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_torch(
    shape: tuple[int, ...], channels_last: bool, training: bool, isa: str
) -> None:
    for mean in (0.5, -3000.0):
        tensors = make_inputs(shape, mean)
        tensors["input"] = in_layout(tensors["input"], channels_last)
        check(tensors, training)
        for kernel in ("batch_norm_forward", "batch_norm_backward"):
            assert runtime.last_used_isa(kernel) == isa
    for left_out in ("weight", "bias"):
        check({name: t for name, t in tensors.items() if name != left_out}
              | {"running_mean": tensors["running_mean"]}, training)  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_relu_behind_it(channels_last: bool, training: bool, isa: str) -> None:
    """The mask of the gradient is that of our own output, whose zeros may differ by rounding."""
    for shape in ((3, 20, 9, 11), (40, 35), (2, 3, 40, 60)):
        tensors = make_inputs(shape)
        tensors["input"] = in_layout(tensors["input"], channels_last)
        mine = results(fastF.batch_norm, tensors, training, activation="relu")
        mask = (mine["output"] > 0).to(torch.float32)
        theirs = results(F.batch_norm, tensors, training, mask)
        oracle = results(F.batch_norm, doubled(tensors), training, mask.double())
        for found in (theirs, oracle):
            found["output"] = found["output"].relu()
        for name in oracle:
            assert_parity(mine[name], theirs[name], oracle[name], name)
        assert 0.2 < mask.mean() < 0.8


def test_relu_keeps_nan_and_its_gradient() -> None:
    x = torch.randn(4, 3, 5, 5)
    x[1, 2, 3, 3] = torch.nan
    leaf = x.clone().requires_grad_()
    stats = torch.zeros(3), torch.ones(3)
    output = fastF.batch_norm(leaf, *stats, activation="relu")
    assert output.isnan().sum() == 1
    assert torch.autograd.grad(output.sum(), leaf)[0][1, 2, 3, 3] > 0.9


def test_negative_control_one_changed_value_fails() -> None:
    tensors = make_inputs((4, 6, 8, 8))
    theirs = results(F.batch_norm, tensors, True)
    oracle = results(F.batch_norm, doubled(tensors), True)
    tensors["input"][1, 2, 3, 4] += 1e-2
    mine = results(fastF.batch_norm, tensors, True)
    for name in ("output", "running_mean", "running_var", "grad_input", "grad_weight"):
        with pytest.raises(AssertionError, match=name):
            assert_parity(mine[name], theirs[name], oracle[name], name)


def test_views_and_odd_gradients(isa: str) -> None:
    """Inputs and gradients that are not dense, and per-channel vectors with strides."""
    wide = torch.randn(6, 40, 8, 18)
    for view in (wide[:, ::2], wide[:, 10:20], wide[..., ::3], wide.transpose(2, 3),
                 wide[:1].expand(6, 40, 8, 18), wide.permute(1, 0, 2, 3)):  # fmt: skip
        channels = view.shape[1]
        weight = torch.randn(channels, 2)[:, 0].requires_grad_()
        leaf = view.detach().requires_grad_()
        grads = []
        for function in (fastF.batch_norm, F.batch_norm):
            stats = torch.zeros(channels, 2)[:, 0], torch.ones(channels, 2)[:, 0]
            output = function(leaf, *stats, weight, training=True)
            grads.append((*torch.autograd.grad(output.square().sum(), [leaf, weight]), *stats))
            grads[-1] += torch.autograd.grad(function(leaf, *stats).sum(), [leaf])
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
            assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 3), (2, 3, 0, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_empty_inputs(shape: tuple[int, ...], training: bool) -> None:
    tensors = make_inputs(shape)
    mine = results(fastF.batch_norm, tensors, training)
    likes = {"output": "input", "grad_input": "input", **{name: name for name in STATISTICS}}
    for name, like in likes.items():
        assert torch.equal(mine[name], tensors[like])
    assert torch.equal(mine["grad_weight"], torch.zeros(3))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [(40, 3, 30, 30), (6, 33, 40, 25), (5000, 40)], ids=str)
def test_bitwise_the_same_every_time_and_on_any_threads(
    shape: tuple[int, ...], channels_last: bool, isa: str
) -> None:
    tensors = make_inputs(shape)
    tensors["input"] = in_layout(tensors["input"], channels_last)
    before, runs = torch.get_num_threads(), []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        runs.append(results(fastF.batch_norm, tensors, True, activation="relu"))
    torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(runs[0][name], other[name]) for name in runs[0])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck(affine: bool, activation: str, training: bool) -> None:
    tensors = make_inputs((3, 2, 2, 3), dtype=torch.float64)
    names = ["input", "weight", "bias"] if affine else ["input"]

    def function(*leaves: Tensor) -> Tensor:
        stats = {name: tensors[name].clone() for name in STATISTICS}
        given = dict(zip(names, leaves, strict=True))
        return fastF.batch_norm(**given, **stats, training=training, activation=activation)

    leaves = [tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_second_derivative_of_float32() -> None:
    tensors = make_inputs((4, 5, 6, 6))
    leaves = [tensors[name].requires_grad_() for name in ("input", "weight", "bias")]
    second = []
    for function in (fastF.batch_norm, F.batch_norm):
        x, weight, bias = leaves
        output = function(x, None, None, weight, bias, training=True)
        grads = torch.autograd.grad(output.pow(3).sum(), leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    for mine, theirs in zip(*second, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_only_wanted_gradients() -> None:
    tensors = make_inputs((4, 5, 6, 6))
    for training, wanted in itertools.product(
        (True, False), (("input",), ("weight",), ("bias",), ("weight", "bias"), ("input", "bias"))
    ):
        grads = []
        for function in (fastF.batch_norm, F.batch_norm):
            leaves = {name: t.clone() for name, t in tensors.items()}
            output = function(
                **{n: t.requires_grad_(n in wanted) for n, t in leaves.items()}, training=training
            )
            grads.append(torch.autograd.grad(output.pow(2).sum(), [leaves[n] for n in wanted]))
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_statistics_may_move_between_eval_forward_and_backward() -> None:
    tensors = make_inputs((4, 5, 6, 6))
    x = tensors.pop("input").requires_grad_()
    output = fastF.batch_norm(x, **tensors)
    expected = torch.autograd.grad(output.square().sum(), x, retain_graph=True)[0]
    fastF.batch_norm(x.detach() * 3, **tensors, training=True)
    assert tensors["running_mean"]._version == 1
    assert torch.equal(torch.autograd.grad(output.square().sum(), x)[0], expected)


# --- The operator in torch's machinery ------------------------------------------------------------


def test_opcheck() -> None:
    for tensors in (make_inputs((3, 4, 5, 5)), make_inputs((6, 3), dtype=torch.float64)):
        x, mean, var, weight, bias = tensors.values()
        for grad in (False, True):
            leaves = [t.clone().requires_grad_(grad) for t in (x, weight, bias)]
            for stats in ((mean, var), (None, None)):
                torch.library.opcheck(
                    OPS.batch_norm_training.default, (*leaves, *stats, 0.1, 1e-5, True)
                )
            torch.library.opcheck(
                OPS.batch_norm_inference.default,
                (leaves[0], mean, var, leaves[1], None, 1e-5, False),
            )
        torch.library.opcheck(
            OPS._batch_norm_training.default, (x, weight, bias, mean, var, 0.1, 1e-5, False)
        )
        for training, mask in ((True, [True] * 3), (False, [True, False, True])):
            torch.library.opcheck(
                OPS._batch_norm_backward.default,
                (x, x, torch.stack([mean, mean * 0]), var, weight, bias, training, True, mask),
            )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_as_one_graph(training: bool) -> None:
    tensors = make_inputs((4, 6, 5, 5))

    def function(**given: Any) -> Tensor:
        return fastF.batch_norm(**given, activation="relu")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = results(function, tensors, training)
    got = results(compiled, tensors, training)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_torch_func_forward_mode_and_autocast() -> None:
    x, mean, var, weight, bias = make_inputs((6, 4, 3, 3)).values()
    gradients, mapped, tangents, lower = [], [], [], []
    for function in (fastF.batch_norm, F.batch_norm):

        def loss(x: Tensor, function: Callable[..., Tensor] = function) -> Tensor:
            return function(x, None, None, weight, bias, training=True).pow(3).sum()

        gradients.append(torch.func.grad(loss)(x))
        mapped.append(
            torch.func.vmap(lambda row, f=function: f(row[None], mean, var, weight, bias))(x)
        )
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            tangents.append(forward_ad.unpack_dual(function(dual, mean, var, weight)).tangent)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower.append(function(x.bfloat16(), mean, var, weight, bias))
            lower.append(function(x, mean, var, weight, bias))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*mapped)
    torch.testing.assert_close(*tangents)
    assert [t.dtype for t in lower] == [torch.bfloat16, torch.float32] * 2
    assert torch.equal(lower[0], lower[2])


def test_other_dtypes_are_torchs() -> None:
    tensors = make_inputs((4, 3, 6, 6))
    for dtype, own in itertools.product((torch.bfloat16, torch.float16), (False, True)):
        given = {n: t.to(dtype) if own or n == "input" else t for n, t in tensors.items()}
        for training in (True, False):
            mine = results(fastF.batch_norm, given, training)
            theirs = results(F.batch_norm, given, training)
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
            with torch.inference_mode():
                assert torch.equal(fastF.batch_norm(**given), F.batch_norm(**given))


def test_inference_mode() -> None:
    tensors = make_inputs((4, 3, 6, 6))
    with torch.inference_mode():
        for training in (True, False):
            stats = [{name: t.clone() for name, t in tensors.items()} for _ in range(2)]
            mine = fastF.batch_norm(**stats[0], training=training)
            torch.testing.assert_close(mine, F.batch_norm(**stats[1], training=training))
            for name in STATISTICS:
                torch.testing.assert_close(stats[0][name], stats[1][name])


def test_cuda_tensors_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def recorded(*args: Any) -> Tensor:
        calls.append(args)
        return args[0]

    monkeypatch.setattr(F, "batch_norm", recorded)
    with FakeTensorMode():
        x = torch.empty(4, 3, 8, 8, device="cuda")
        stats = torch.zeros(3, device="cuda"), torch.ones(3, device="cuda")
        fastF.batch_norm(x, *stats, training=True)
        fast_nn.BatchNorm2d(3, device="cuda").eval()(x)
    assert [(call[0] is x, call[5]) for call in calls] == [(True, True), (True, False)]


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.randn(1, 4)}, "more than 1 value per channel when training, got input"),
        ({"input": torch.randn(1, 4, 1, 1)}, "more than 1 value per channel"),
        ({"input": torch.randn(4)}, r"expected input of shape \[N, C, ...\], got \[4\]"),
        ({"weight": torch.randn(5)}, r"expected weight of shape \[4\], got \[5\]"),
        ({"bias": torch.randn(4, 1)}, r"expected bias of shape \[4\], got \[4, 1\]"),
        ({"running_mean": torch.randn(3)}, r"expected running_mean of shape \[4\], got \[3\]"),
        ({"running_var": torch.randn(3)}, r"expected running_var of shape \[4\], got \[3\]"),
        ({"running_var": None}, "expected running_mean and running_var, or neither, got one"),
        ({"running_mean": None}, "expected running_mean and running_var, or neither, got one"),
        ({"eps": 0.0}, "expected eps above 0 when training, got 0"),
        ({"eps": -1.0}, "expected eps above 0 when training, got -1"),
        ({"eps": -1.0, "training": False}, "expected eps of at least 0, got -1"),
        ({"activation": "gelu"}, "expected activation one of none, relu, got 'gelu'"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {**make_inputs((3, 4, 5, 5)), "training": True, **change}
    for grad in (False, True):
        arguments["input"].requires_grad_(grad)
        with pytest.raises(ValueError, match=f"batch_norm: .*{message}"):
            fastF.batch_norm(**arguments)


def test_eval_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="expected running_mean and running_var when not training"):
        fastF.batch_norm(torch.randn(3, 4), None, None)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_ask_for_a_gradient_are_refused(name: str, training: bool) -> None:
    arguments: dict[str, Any] = {**make_inputs((3, 4, 5, 5)), "training": training}
    arguments[name].requires_grad_()
    with pytest.raises(RuntimeError, match=f"expected {name} that requires no gradient"):
        fastF.batch_norm(**arguments)


def test_dtypes_that_torch_refuses_are_refused() -> None:
    with pytest.raises(RuntimeError):
        fastF.batch_norm(torch.randn(3, 4), None, None, torch.ones(4).double(), training=True)


# --- Layers ---------------------------------------------------------------------------------------

PAIRS = [
    (fast_nn.BatchNorm2d, torch.nn.BatchNorm2d, (4, 3, 6, 6)),
    (fast_nn.BatchNorm1d, torch.nn.BatchNorm1d, (5, 3)),
    (fast_nn.BatchNorm1d, torch.nn.BatchNorm1d, (5, 3, 7)),
]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("momentum", [0.2, None])
@pytest.mark.parametrize(("mine", "torchs", "shape"), PAIRS)
def test_layers(
    mine: type, torchs: type, shape: tuple[int, ...], momentum: float | None, track: bool,
    affine: bool,
) -> None:  # fmt: skip
    options = {"momentum": momentum, "track_running_stats": track, "affine": affine, "eps": 1e-3}
    ours, theirs = mine(3, **options), torchs(3, **options)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert repr(ours) == repr(theirs)
    for training in (True, True, False, True, False):
        x = torch.randn(shape)
        grads = []
        for net in (ours, theirs):
            leaf = x.clone().requires_grad_()
            output = net.train(training)(leaf)
            wanted = [leaf, *net.parameters()]
            grads.append((output, *torch.autograd.grad(output.pow(3).sum(), wanted)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value)
    copied = copy.deepcopy(ours)
    copied.load_state_dict(theirs.state_dict())


def test_layers_refuse_what_torchs_refuse() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        fast_nn.BatchNorm2d(3)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        fast_nn.BatchNorm1d(3)(torch.randn(4, 3, 5, 5))
