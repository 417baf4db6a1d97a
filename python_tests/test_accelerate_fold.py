# SPDX-License-Identifier: MIT
"""fastconv.accelerate(model, fold_bn=True): batch normalisation folded outside nn.Sequential."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_accelerate import OperatorNames, gradients, rms_error
from torch import Tensor, nn

import fastconv


class Block(nn.Module):
    """As in a ResNet: two convolutions with normalisation and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(Block(6), Block(6))

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.blocks(self.norm(self.stem(x))) * scale


def net() -> nn.Module:
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def runs_norm(model: nn.Module, x: Tensor) -> bool:
    with OperatorNames() as operators:
        model(x)
    return any("batch_norm" in name for name in operators.names)


def test_all_normalisations_are_folded() -> None:
    model = net()
    fast = copy.deepcopy(model)
    report = fastconv.accelerate(fast, fold_bn=True)
    assert [entry.layers for entry in report.fused] == [
        ("stem", "norm"),
        ("blocks.0.conv1", "blocks.0.bn1"), ("blocks.0.conv2", "blocks.0.bn2"),
        ("blocks.1.conv1", "blocks.1.bn1"), ("blocks.1.conv2", "blocks.1.bn2"),
    ]  # fmt: skip
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert not runs_norm(fast, x)
        exact = copy.deepcopy(model).double()(x.double())
        assert rms_error(fast(x), exact) <= 2 * rms_error(model(x), exact) + 1e-6
        torch.testing.assert_close(fast(x, scale=2.0), 2 * fast(x))
        assert torch.equal(fastconv.restore(fast)(x), model(x))
    assert all("forward" not in module.__dict__ for module in fast.modules())


def test_layers_called_from_elsewhere_are_what_they_were() -> None:
    model = net()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast, fold_bn=True)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        fast(x)
        ours, theirs = fast.stem(x), model.stem(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fast.norm(ours), model.norm(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_fold_their_own(duplicate: object) -> None:
    fast = net()
    fastconv.accelerate(fast, fold_bn=True)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        twin = duplicate(fast)  # type: ignore[operator]
        assert torch.equal(twin(x), fast(x))
        assert not runs_norm(twin, x)
        expected = fast(x)
        twin.norm.bias.fill_(7)
        assert torch.equal(fast(x), expected)
        assert not torch.equal(twin(x), expected)
    assert fast.norm is not twin.norm


def test_training_is_untouched() -> None:
    model = net().train()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast, fold_bn=True)
    x = torch.randn(4, 3, 16, 16)
    oracle = gradients(copy.deepcopy(model).double(), x.double())
    theirs, ours = gradients(model, x), gradients(fast, x)
    for name, exact in oracle.items():
        # A convolution's bias before a normalisation has no gradient but rounding errors.
        if exact.norm() > 1e-9:
            assert rms_error(ours[name], exact) <= 2 * rms_error(theirs[name], exact) + 1e-6, name
    for a, b in zip(fast.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("position", ["stem", "norm"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_see_what_torch_shows(position: str, kind: str) -> None:
    model = net()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast, fold_bn=True)
    x = torch.randn(4, 3, 16, 16)
    seen: list[Tensor] = []
    for module in (model, fast):
        register = getattr(module.get_submodule(position), f"register_{kind}_hook")
        register(lambda m, args, *output: seen.append((output or args)[0].clone()))
        with torch.no_grad():
            module(x)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)
    assert len(seen) == 2


def test_gradients_of_parameters_keep_it_from_folding() -> None:
    fast = net()
    fastconv.accelerate(fast, fold_bn=True)
    x = torch.randn(4, 3, 16, 16)
    assert runs_norm(fast, x)
    fast.requires_grad_(False)
    assert not runs_norm(fast, x.requires_grad_())


def test_other_dtypes_and_autocast() -> None:
    model = net()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast, fold_bn=True)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fast(x), model(x))
        assert torch.equal(fast.double()(x.double()), model.double()(x.double()))


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class CalledTwice(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.bn(self.conv(x))))


class SomethingBetween(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) * 2)


class DependsOnValues(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) if x.sum() > 0 else y


@pytest.mark.parametrize("build", [TwoReaders, CalledTwice, SomethingBetween, DependsOnValues])
def test_what_cannot_be_folded_is_not(build: type[nn.Module]) -> None:
    model = build().eval()
    fast = copy.deepcopy(model)
    report = fastconv.accelerate(fast, fold_bn=True)
    assert not report.fused
    reasons = [entry.reason for entry in report.left if entry.type == build.__name__]
    if build is DependsOnValues:
        assert reasons == ["fold_bn: torch.fx cannot follow its forward (TraceError)"]
    x = torch.randn(2, 3, 8, 8)
    for sign in (1, -1):
        with torch.no_grad():
            torch.testing.assert_close(fast(sign * x), model(sign * x), rtol=1e-4, atol=1e-5)


def test_a_block_inside_a_model_that_cannot_be_traced() -> None:
    model = nn.Sequential(DependsOnValues(), Block(3)).eval()
    report = fastconv.accelerate(model, fold_bn=True)
    assert {entry.name for entry in report.fused} == {"1"}


def test_threads_fold_for_themselves() -> None:
    """While some threads run the model, another calls a layer by itself."""
    fast = net()
    fastconv.accelerate(fast, fold_bn=True)
    torch.set_num_threads(1)
    inputs = [torch.randn(2, 3, 24, 24) for _ in range(60)]
    with torch.no_grad():
        expected = [(fast(x), fast.stem(x)) for x in inputs]

    def run(i: int) -> tuple[bool, bool]:
        with torch.no_grad():
            whole, stem = expected[i]
            return torch.equal(fast(inputs[i]), whole), torch.equal(fast.stem(inputs[i]), stem)

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(run, range(60))} == {(True, True)}


def test_it_is_off_unless_asked_for_and_scoped() -> None:
    model = net()
    assert not fastconv.accelerate(model).fused
    with fastconv.accelerated(model, fold_bn=True) as report:
        assert len(report.fused) == 5
        twin = copy.deepcopy(model)
        with torch.no_grad():
            assert not runs_norm(twin, torch.randn(4, 3, 16, 16))
    with torch.no_grad():
        assert runs_norm(model, torch.randn(4, 3, 16, 16))
    for module in (model.stem, model.norm):
        assert "forward" in module.__dict__  # it was accelerated before
    assert fastconv.accelerate(model, fold_bn=True) == fastconv.accelerate(model, fold_bn=True)


def test_compiled_it_does_not_fold() -> None:
    fast = net()
    fastconv.accelerate(fast, fold_bn=True)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), fast(x), rtol=1e-4, atol=1e-5)
