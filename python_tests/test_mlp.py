# SPDX-License-Identifier: MIT
"""mlp against a chain of torch's linear: every instruction set, several batches, activations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import prune

import fastconv.functional as fastF
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
WIDTHS = [(400, 120, 84, 10), (33, 17), (1, 1, 1), (16, 64, 3), (129, 2, 5)]


@pytest.fixture(params=runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with runtime.force_cpu_isa(request.param):
        yield request.param


def make_leaves(
    batch: int, widths: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Input, all weights, all biases."""
    generator = torch.Generator().manual_seed(batch)
    sizes = list(itertools.pairwise(widths))
    tensors = [torch.randn(batch, widths[0], generator=generator)]
    tensors += [torch.randn(o, i, generator=generator) / i**0.5 for i, o in sizes]
    tensors += [torch.randn(o, generator=generator) for _, o in sizes]
    return [t.to(dtype).requires_grad_() for t in tensors]


def ours(activation: str, *leaves: Tensor) -> Tensor:
    layers = len(leaves) // 2
    return fastF.mlp(
        leaves[0],
        leaves[1 : 1 + layers],
        leaves[1 + layers :],
        activation=activation,
        negative_slope=0.2,
    )


def torchs(activation: str, *leaves: Tensor) -> Tensor:
    layers, x = len(leaves) // 2, leaves[0]
    for i in range(layers):
        x = F.linear(x, leaves[1 + i], leaves[1 + layers + i])
        x = ACTIVATIONS[activation](x) if i + 1 < layers else x
    return x


def results(run: Callable[..., Tensor], activation: str, leaves: list[Tensor]) -> list[Tensor]:
    output = run(activation, *leaves)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def assert_parity(mine: Tensor, theirs: Tensor, oracle: Tensor) -> None:
    """Our error is at most twice torch's, plus 1e-6 of the result's rms."""
    rms = oracle.square().mean().sqrt().item()
    allowed = 2 * (theirs - oracle).abs().max().item() + 1e-6 * rms
    assert (mine - oracle).abs().max().item() <= allowed


def doubled(leaves: list[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in leaves]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_torch(activation: str, widths: tuple[int, ...], threads: int, isa: str) -> None:
    torch.set_num_threads(threads)
    for batch in (1, 5, 40, 130):
        leaves = make_leaves(batch, widths)
        triples = zip(
            results(ours, activation, leaves),
            results(torchs, activation, leaves),
            results(torchs, activation, doubled(leaves)),
            strict=True,
        )
        assert runtime.last_used_isa("mlp_forward") == isa
        assert runtime.last_used_isa("mlp_backward") == isa
        for mine, theirs, oracle in triples:
            assert mine.shape == theirs.shape
            assert_parity(mine.double(), theirs.double(), oracle)


def test_negative_control_one_changed_weight_fails() -> None:
    leaves = make_leaves(20, (40, 30, 10))
    theirs = results(torchs, "relu", leaves)
    oracle = results(torchs, "relu", doubled(leaves))
    with torch.no_grad():
        leaves[1][2, 3] += 1e-3
    mine = results(ours, "relu", leaves)
    for i in (0, 1):
        with pytest.raises(AssertionError):
            assert_parity(mine[i].double(), theirs[i].double(), oracle[i])


def test_large_layers_other_dtypes_and_shapes_are_torchs() -> None:
    for leaves in (
        make_leaves(4, (600, 500, 3)),
        make_leaves(4, (6, 5, 3), torch.float64),
        make_leaves(4, (6, 5, 3), torch.bfloat16),
    ):
        expected = results(torchs, "relu", leaves)
        assert all(
            torch.equal(a, b) for a, b in zip(results(ours, "relu", leaves), expected, strict=True)
        )
    x, *parameters = make_leaves(4, (6, 5, 3))
    for view in (x[0], x.reshape(2, 2, 6)):
        assert torch.allclose(ours("tanh", view, *parameters), torchs("tanh", view, *parameters))


def test_frozen_layers_are_composed() -> None:
    leaves = make_leaves(8, (6, 5, 3))
    leaves[1].requires_grad_(False)
    wanted = [t for t in leaves if t.requires_grad]
    grads = [torch.autograd.grad(run("relu", *leaves).sum(), wanted) for run in (ours, torchs)]
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_views_and_empty_batches(isa: str) -> None:
    x, *parameters = make_leaves(40, (30, 20, 10))
    wide = torch.randn(40, 60)
    for view in (wide[:, ::2], wide[:, 30:], wide[:30].t()[:30], x[::2]):
        grads = [
            torch.autograd.grad(run("relu", view, *parameters).square().sum(), parameters)
            for run in (ours, torchs)
        ]
        for a, b in zip(*grads, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    empty = torch.randn(0, 30, requires_grad=True)
    output = ours("relu", empty, *parameters)
    assert output.shape == (0, 10)
    grads = torch.autograd.grad(output.sum(), [empty, *parameters])
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("threads", [1, 2])
def test_bitwise_the_same_every_time(isa: str, threads: int) -> None:
    torch.set_num_threads(threads)
    leaves = make_leaves(70, (60, 50, 10))
    runs = [results(ours, "tanh", leaves) for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("activation", ["none", "sigmoid", "tanh", "leaky_relu"])
def test_gradcheck(activation: str) -> None:
    leaves = make_leaves(3, (4, 5, 2), torch.float64)
    assert torch.autograd.gradcheck(lambda *t: ours(activation, *t), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: ours(activation, *t), leaves)


def test_second_derivative_of_fused_calls() -> None:
    leaves = make_leaves(6, (10, 8, 4))
    second = []
    for run in (ours, torchs):
        grads = torch.autograd.grad(run("tanh", *leaves).square().sum(), leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    for a, b in zip(*second, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def test_opcheck() -> None:
    x, w1, w2, b1, b2 = make_leaves(20, (10, 8, 4))
    torch.library.opcheck(OPS.mlp.default, (x, [w1, w2], [b1, b2], "relu"))
    plain = [t.detach() for t in (x, w1, w2, b1, b2)]
    arguments = (plain[0], plain[1:3], plain[3:])
    torch.library.opcheck(OPS._mlp_training.default, (*arguments, "tanh", 0.01))
    hidden, output = OPS._mlp_training(*arguments, "tanh", 0.01)
    for input_grad in (True, False):
        torch.library.opcheck(
            OPS._mlp_backward.default,
            (output, plain[0], plain[1:3], [hidden], "tanh", 0.01, input_grad),
        )


def test_compiles_as_one_graph() -> None:
    leaves = make_leaves(20, (10, 8, 4))
    compiled = torch.compile(lambda *t: ours("relu", *t), fullgraph=True, backend="aot_eager")
    expected = results(ours, "relu", leaves)
    got = results(lambda _, *t: compiled(*t), "relu", leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_torch_func_forward_mode_and_autocast() -> None:
    x, *parameters = (t.detach() for t in make_leaves(6, (10, 8, 4)))
    mine, theirs = (
        torch.func.grad(lambda x, run=run: run("tanh", x, *parameters).square().sum())(x)
        for run in (ours, torchs)
    )
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    mapped = torch.func.vmap(lambda row: ours("tanh", row, *parameters))(x)
    assert torch.allclose(mapped, torchs("tanh", x, *parameters), rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [
            forward_ad.unpack_dual(run("relu", dual, *parameters)).tangent for run in (ours, torchs)
        ]
    assert torch.allclose(*tangents, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours("relu", x.bfloat16(), *parameters).dtype == torch.float32


def test_leaky_relu_scales_the_gradient_behind_nan(isa: str) -> None:
    """NaN is not above zero: torch's gradient there is the slope's, and ours has to be."""
    for batch in (1, 6, 40):
        leaves = make_leaves(batch, (10, 24, 4))
        with torch.no_grad():
            leaves[3][::3] = float("nan")  # every third hidden unit
        mine, theirs = results(ours, "leaky_relu", leaves), results(torchs, "leaky_relu", leaves)
        # The output and what is multiplied with the hidden units are NaN; the gradients of the
        # first layer and of the input are not.
        for name in (1, 2, 4):
            assert not mine[name].isnan().any()
            assert torch.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t[0], t[1][:, :5], *t[2:]], "mlp: expected weight 0 of shape"),
        (lambda t: [*t[:3], t[3][:2], t[4]], "mlp: expected bias 0 of shape"),
        (lambda t: [t[0].sum(), *t[1:]], "mlp: expected input of shape"),
        (lambda t: t[:1], "mlp: expected at least one weight"),
    ],
)
def test_bad_shapes_are_refused(change: Callable, message: str) -> None:
    leaves = [t.detach() for t in make_leaves(6, (10, 8, 4))]
    with pytest.raises(ValueError, match=message):
        ours("relu", *change(leaves))


def test_bad_names_and_dtypes_are_refused() -> None:
    x, w1, w2, b1, b2 = make_leaves(6, (10, 8, 4))
    with pytest.raises(ValueError, match="mlp: expected activation one of none, relu"):
        ours("gelu", x, w1, w2, b1, b2)
    with pytest.raises(RuntimeError, match="of the input's dtype"):
        ours("relu", x, w1.double(), w2, b1, b2)


def test_lenet_uses_it_without_dropout_only() -> None:
    images = torch.randn(20, 1, 28, 28)
    model = LeNet5()
    assert "MlpBackward" in model(images).grad_fn.name()
    model = LeNet5(dropout=0.5)
    assert "MlpBackward" not in model(images).grad_fn.name()
    assert "MlpBackward" in model.eval()(images).grad_fn.name()


def test_lenet_runs_changed_layers_one_by_one() -> None:
    images = torch.randn(20, 1, 28, 28)
    model = LeNet5()
    seen: list[torch.Tensor] = []
    handle = model.fc2.register_forward_hook(lambda module, inputs, output: seen.append(output))
    plain = LeNet5()
    plain.load_state_dict(model.state_dict())
    expected = plain(images)
    assert torch.allclose(model(images), expected, rtol=1e-5, atol=1e-6)
    assert len(seen) == 1
    handle.remove()
    assert "MlpBackward" in model(images).grad_fn.name()
    prune.l1_unstructured(model.fc1, "weight", amount=0.5)
    pruned = model(images)
    assert "MlpBackward" not in pruned.grad_fn.name()
    assert not torch.allclose(pruned, expected, rtol=1e-5, atol=1e-6)
    prune.remove(model.fc1, "weight")
    assert torch.allclose(model(images), pruned, rtol=1e-5, atol=1e-6)
    model.fc3 = torch.nn.Sequential(torch.nn.Linear(84, 3))
    assert model(images).shape == (20, 3)
