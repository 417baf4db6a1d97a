# SPDX-License-Identifier: MIT
"""relu, out of place and in place, against torch's: the same bits, the same autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv.functional as fastF
from fastconv import runtime

OPS = torch.ops.fastconv
Relu = Callable[[Tensor, bool], Tensor]


@pytest.fixture(params=runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with runtime.force_cpu_isa(request.param):
        yield request.param


def make_input(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    x.view(-1)[::7] = 0.0
    x.view(-1)[3::50] = torch.nan
    return x


def results(relu: Relu, x: Tensor, inplace: bool) -> list[Tensor]:
    """Output, what became of the tensor that went in, and the gradient of the one before it."""
    leaf = x.detach().requires_grad_()
    middle = leaf * 1.0
    output = relu(middle, inplace)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    return [output, middle, *torch.autograd.grad(output, leaf, grad)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.stride() == b.stride() and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_matches_torch(inplace: bool, threads: int, isa: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    wide = make_input(3, 8, 20, 30)
    for x in (make_input(5), make_input(2, 3, 4), make_input(70, 33, 41), wide, make_input(0, 4),
              wide.contiguous(memory_format=torch.channels_last)):  # fmt: skip
        runtime.forget_last_used()
        for mine, theirs in zip(
            results(fastF.relu, x, inplace), results(F.relu, x, inplace), strict=True
        ):
            assert same_bits(mine, theirs)
        assert runtime.last_used_isa("relu_backward") == isa
    for view in (wide[:, 2:5], wide.transpose(2, 3), wide.double(), wide.bfloat16(), wide.half()):
        for mine, theirs in zip(
            results(fastF.relu, view, inplace), results(F.relu, view, inplace), strict=True
        ):
            assert same_bits(mine, theirs)
    torch.set_num_threads(before)


def test_negative_control() -> None:
    x = make_input(50, 60)
    changed = x.clone()
    changed[4, 5] = 3.0
    mine, theirs = results(fastF.relu, changed, False), results(F.relu, x, False)
    assert not same_bits(mine[0], theirs[0])


def test_in_place_as_torch_has_it() -> None:
    """Versions, views, leaves and tensors that were saved by somebody else."""
    for relu in (fastF.relu, F.relu):
        leaf = make_input(30, 40).nan_to_num(1.0).requires_grad_()
        middle = leaf * 2
        assert relu(middle, True) is middle
        assert middle._version == 1
        base = leaf * 2
        relu(base[3:7], True)
        grad = torch.autograd.grad(base.sum(), leaf)[0]
        assert torch.equal(grad[3:7], 2.0 * (leaf[3:7] > 0))
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            relu(leaf, True)
        squared = leaf.square()
        loss = squared.square()  # saves `squared`
        relu(squared, True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()


def test_without_gradients(isa: str) -> None:
    x = make_input(60, 70)
    with torch.inference_mode():
        assert same_bits(fastF.relu(x), F.relu(x))
    with torch.no_grad():
        assert same_bits(fastF.relu(x), F.relu(x))
        assert same_bits(fastF.relu(x.clone(), True), F.relu(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck(inplace: bool) -> None:
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).view(2, 12).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return fastF.relu(x * 1.5, inplace).pow(2)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_opcheck() -> None:
    x = make_input(6, 8).nan_to_num(1.0)  # opcheck takes no two NaN for equal
    for leaf in (x, x.clone().requires_grad_()):
        torch.library.opcheck(OPS.relu.default, (leaf,))
        torch.library.opcheck(OPS._relu_backward.default, (leaf, x.relu()))
    torch.library.opcheck(OPS.relu_.default, (x.clone(),))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_as_one_graph(inplace: bool) -> None:
    x = make_input(6, 8).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return fastF.relu(x * 2, inplace).square()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(x).nan_to_num(0).sum(), x)[0] for f in (compiled, function)]
    assert same_bits(*grads)


def test_torch_func_forward_mode_and_autocast() -> None:
    x = make_input(6, 8).nan_to_num(1.0)
    for inplace in (False, True):
        found = []
        for relu in (fastF.relu, F.relu):

            def loss(x: Tensor, relu: Relu = relu, inplace: bool = inplace) -> Tensor:
                return relu(x * 2, inplace).pow(3).sum()

            with forward_ad.dual_level():
                dual = forward_ad.make_dual(x, torch.ones_like(x))
                tangent = forward_ad.unpack_dual(relu(dual * 2, inplace)).tangent
            found.append((torch.func.grad(loss)(x), torch.func.vmap(loss)(x), tangent))
        for mine, theirs in zip(*found, strict=True):
            assert torch.equal(mine, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastF.relu(x).dtype == torch.float32
        assert fastF.relu(x.bfloat16()).dtype == torch.bfloat16


def test_cuda_tensors_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(F, "relu", lambda *args: calls.append(args))
    with FakeTensorMode():
        x = torch.empty(4, 3, device="cuda")
        fastF.relu(x, True)
    assert calls == [(x, True)]


def test_bad_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"relu: expected grad_output of shape \[3, 4\]"):
        OPS._relu_backward(torch.ones(4, 3), torch.ones(3, 4))


# --- In place on the result of a batch normalisation ----------------------------------------------

Program = Callable[[Relu, Tensor], Tensor]


def normalised(x: Tensor, training: bool = True) -> Tensor:
    weight, bias = torch.linspace(0.5, 1.5, 3), torch.linspace(-0.2, 0.2, 3)
    statistics = torch.full((3,), 0.1), torch.full((3,), 1.5)
    return fastF.batch_norm(
        x, *(t.to(x.dtype) for t in statistics), weight.to(x.dtype), bias.to(x.dtype), training
    )


def plainly(relu: Relu, x: Tensor) -> Tensor:
    return relu(normalised(x), True)


def with_given_statistics(relu: Relu, x: Tensor) -> Tensor:
    return relu(normalised(x, False), True)


def hooked_afterwards(relu: Relu, x: Tensor) -> Tensor:
    y = relu(normalised(x), True)
    y.retain_grad()
    y.register_hook(torch.cos)
    return y


def read_without_gradient(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    with torch.no_grad():
        before = y.exp()
    return relu(y, True) * before


def read_before(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    tripled = y * 3
    return tripled + relu(y, True)


def viewed_before(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    rows = y.flatten(1)
    return relu(y, True) + rows.view_as(y)


def hooked_before(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    y.register_hook(torch.cos)
    return relu(y, True)


def node_hooked_before(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    assert y.grad_fn is not None
    y.grad_fn.register_prehook(lambda grads: (grads[0].cos(),))
    return relu(y, True)


def retained_before(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    y.retain_grad()
    return relu(y, True)


def edge_held_before(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    before = torch.autograd.graph.get_gradient_edge(y)
    after = relu(y, True)
    grad = torch.autograd.grad(after.square().sum(), before, retain_graph=True)[0]
    return after * grad


def changed_without_gradient(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    with torch.no_grad():
        relu(y, True)
    return y


def negated_without_gradient(relu: Relu, x: Tensor) -> Tensor:
    y = normalised(x)
    with torch.no_grad():
        y.neg_()
    return relu(y, True)


JOINED = [plainly, with_given_statistics, hooked_afterwards, read_without_gradient]
APART = [read_before, viewed_before, hooked_before, node_hooked_before, retained_before,
         edge_held_before, negated_without_gradient]  # fmt: skip


def is_joined(output: Tensor) -> bool:
    return output.grad_fn is not None and "BatchNormFunction" in output.grad_fn.name()


@pytest.mark.parametrize("program", [*JOINED, *APART, changed_without_gradient])
def test_behind_a_batch_normalisation(program: Program) -> None:
    """The bits of torch's relu in place, whoever looked at the tensor in between."""
    found = []
    for relu in (fastF.relu, F.relu):
        x = make_input(4, 3, 20, 30).nan_to_num(1.0).requires_grad_()
        seen: list[Tensor] = []

        def watched(y: Tensor, inplace: bool, relu: Relu = relu, seen: list = seen) -> Tensor:
            seen.append(relu(y, inplace))
            return seen[-1]

        output = program(watched, x)
        if program is not changed_without_gradient:
            assert is_joined(seen[-1]) == (relu is fastF.relu and program in JOINED)
        output.backward(torch.linspace(-1, 1, output.numel()).view_as(output))
        assert x.grad is not None
        found.append((output.detach(), x.grad, seen[-1]._version))
    for mine, theirs in zip(*found, strict=True):
        assert mine == theirs if isinstance(mine, int) else same_bits(mine, theirs)


def test_gradcheck_behind_a_batch_normalisation() -> None:
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).sin().view(2, 3, 4).requires_grad_()

    def function(x: Tensor) -> Tensor:
        y = fastF.relu(normalised(x), True)
        assert is_joined(y)
        return y

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)
