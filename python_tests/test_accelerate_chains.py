# SPDX-License-Identifier: MIT
"""Chains of layers in an accelerated nn.Sequential: when they run as one operator, and when not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_accelerate import OperatorNames, gradients, rms_error
from torch import Tensor, nn

import fastconv

BLOCK = {"fastconv.conv_block2d", "fastconv._conv_block2d_training"}


def operators_of(call: Callable[[], Any]) -> set[str]:
    with OperatorNames() as operators:
        call()
    return operators.names


def runs_fused(model: nn.Module, x: Tensor) -> bool:
    """Whether a call without gradients runs a fused operator."""
    with torch.no_grad():
        names = operators_of(lambda: model(x))
    return bool(names & {*BLOCK, "fastconv.mlp"})


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu_inplace": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.3),
    "negative_slope": lambda: nn.LeakyReLU(-0.5),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
POOLS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "max_overlapping": lambda: nn.MaxPool2d(3, 2),
    "avg": lambda: nn.AvgPool2d((2, 3)),
}


def check_parity(model: nn.Module, x: Tensor) -> None:
    """Accelerated against torch: output and every gradient by the parity rule."""
    fast = copy.deepcopy(model)
    assert fastconv.accelerate(fast).fused
    oracle = gradients(copy.deepcopy(model).double(), x.double())
    theirs, ours = gradients(model, x), gradients(fast, x)
    assert {*ours} == {*oracle}
    for name, exact in oracle.items():
        assert rms_error(ours[name], exact) <= 2 * rms_error(theirs[name], exact) + 1e-6, name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pool", [None, *POOLS])
@pytest.mark.parametrize("size", [12, 70])  # where the kernels fuse, and where they do not
def test_parity_of_chains(activation: str, pool: str | None, size: int) -> None:
    layers = [nn.Conv2d(3, 5, 3, padding=1), ACTIVATIONS[activation]()]
    layers += [POOLS[pool]()] if pool else []
    model = nn.Sequential(*layers)
    x = torch.randn(2, 3, size, size)
    check_parity(model, x)
    fastconv.accelerate(model)
    assert runs_fused(model, x)


@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
        lambda: nn.Conv2d(4, 6, (3, 2), dilation=2, groups=2),
        lambda: nn.Conv2d(4, 6, 4, padding="same"),
        lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    ],
)
def test_parity_of_convolutions_in_chains(conv: Callable[[], nn.Module]) -> None:
    check_parity(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(3, 4, 13, 14))


def test_relu_behind_the_maximum_passes_the_same_gradients() -> None:
    """Ties, zeros, negative windows, NaN and infinity: conv is the identity here."""
    for size in (8, 256):
        model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2))
        nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
        x = torch.randint(-2, 2, (2, 1, size, size)).float()
        x[0, 0, 0, 0] = float("nan")
        x[0, 0, 2, 3] = float("inf")
        fast = copy.deepcopy(model)
        fastconv.accelerate(fast)
        results = []
        for net in (model, fast):
            leaf = x.clone().requires_grad_()
            y = net(leaf)
            y.nan_to_num(1.0, 2.0).sum().backward()
            results.append((y.detach(), leaf.grad))
        for theirs, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.MaxPool2d(2, padding=1)],
        [nn.MaxPool2d(2, ceil_mode=True)],
        [nn.MaxPool2d(2, dilation=2)],
        [nn.AvgPool2d(2, divisor_override=3)],
        [nn.AvgPool2d(2, padding=1)],
        [nn.ReLU(), nn.ReLU()],
        [nn.Identity(), nn.ReLU()],
        [nn.GELU()],
    ],
)
def test_what_one_operator_cannot_do_is_done_by_more(layers: list[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), *layers)
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(2, 2, 11, 12)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


def test_pooling_with_indices_is_not_fused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2, return_indices=True))
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(2, 2, 11, 12)
    for ours, theirs in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_other_padding_modes_are_not_fused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.ReLU())
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(2, 2, 11, 12)
    assert not runs_fused(fast, x)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


def test_options_are_read_at_every_call() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2))
    fastconv.accelerate(model)
    x = torch.randn(2, 2, 11, 12)
    model(x)
    model[0].stride, model[1].negative_slope, model[2].kernel_size = (2, 2), 0.7, 3
    expected = copy.deepcopy(model)
    fastconv.restore(expected)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-5, atol=1e-6)


# --- Changes of the Sequential itself -------------------------------------------------------------


def test_changed_layers_are_noticed() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    fastconv.accelerate(model)
    x = torch.randn(2, 2, 9, 9)
    assert runs_fused(model, x)
    model[1] = nn.Tanh()
    assert runs_fused(model, x)
    torch.testing.assert_close(model(x), torch.tanh(model[0](x)), rtol=1e-5, atol=1e-6)
    model.append(nn.MaxPool2d(2))
    expected = nn.functional.max_pool2d(torch.tanh(model[0](x)), 2)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    del model[1]
    expected = nn.functional.max_pool2d(model[0](x), 2)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    model[0] = nn.Conv2d(2, 4, 1)  # one that nobody accelerated
    assert not runs_fused(model, x)
    fastconv.accelerate(model)
    assert runs_fused(model, x)


def test_a_restored_layer_is_not_run_fused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    fastconv.accelerate(model)
    fastconv.restore(model[0])
    names = operators_of(lambda: model(torch.randn(2, 2, 9, 9)))
    assert not any(name.startswith("fastconv") for name in names)


def test_a_forward_put_over_ours_is_called() -> None:
    """As Hugging Face's accelerate hooks into a module."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    fastconv.accelerate(model)
    before = model[0].forward
    calls = []

    def watched(x: Tensor) -> Tensor:
        calls.append(x)
        return before(x)

    model[0].forward = watched  # type: ignore[assignment]
    model(torch.randn(2, 2, 9, 9))
    assert len(calls) == 1


# --- Hooks ----------------------------------------------------------------------------------------


def watch(module: nn.Module, kind: str, seen: list[Any]) -> None:
    def note(*arguments: Any) -> None:
        tensors = [t for a in arguments[1:] for t in (a if isinstance(a, tuple) else (a,))]
        seen.append((kind, [t.detach().clone() for t in tensors if isinstance(t, Tensor)]))

    getattr(module, f"register_{kind}")(note)


HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("position", range(6))
def test_hooks_see_what_torch_shows(kind: str, position: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)), nn.Tanh(),
    )  # fmt: skip
    fast = copy.deepcopy(model)
    assert len(fastconv.accelerate(fast).fused) == 2
    x = torch.randn(2, 2, 10, 10)
    seen: list[list[Any]] = [[], []]
    for net, record in zip((model, fast), seen, strict=True):
        watch(net[position], kind, record)
        net(x).square().sum().backward()
    theirs, ours = seen
    assert len(ours) == len(theirs) == 1
    assert ours[0][0] == theirs[0][0]
    for a, b in zip(ours[0][1], theirs[0][1], strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_hook_changes_the_result_and_leaves_again() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
    fastconv.accelerate(model)
    x = torch.randn(2, 2, 10, 10)
    before = model(x)
    assert runs_fused(model, x)
    handle = model[1].register_forward_hook(lambda module, args, output: output + 1)
    assert not runs_fused(model, x)
    torch.testing.assert_close(model(x), before + 1, rtol=1e-5, atol=1e-6)
    handle.remove()
    assert runs_fused(model, x)
    torch.testing.assert_close(model(x), before)


def test_hooks_of_all_modules_see_every_layer() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
    fastconv.accelerate(model)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module).__name__)
    )
    try:
        model(torch.randn(2, 2, 10, 10))
    finally:
        hook.remove()
    assert seen == ["Conv2d", "ReLU", "MaxPool2d", "Sequential"]


def test_grad_cam_on_the_last_convolution() -> None:
    """Its activations and their gradient, the way Grad-CAM tools take them."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(1, 3, 20, 20)
    maps = []
    for net in (model, fast):
        kept: dict[str, Tensor] = {}
        net[2].register_forward_hook(lambda m, a, output, kept=kept: kept.update(a=output))
        net[2].register_full_backward_hook(lambda m, gi, go, kept=kept: kept.update(g=go[0]))
        net(x)[0, 2].backward()
        weights = kept["g"].mean((2, 3), keepdim=True)
        maps.append((weights * kept["a"]).sum(1).relu())
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-4, atol=1e-6)
    assert maps[0].max() > 0


# --- Batch normalisation --------------------------------------------------------------------------


def normalised(bias: bool = True, affine: bool = True) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6, affine=affine), nn.ReLU(), nn.MaxPool2d(2)
    )
    norm: Any = model[1]
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [20, 90])
def test_eval_folds_batch_normalisation(bias: bool, affine: bool, size: int) -> None:
    model = normalised(bias, affine).eval()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(4, 3, size, size)
    assert runs_fused(fast, x)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert rms_error(fast(x), exact) <= 2 * rms_error(model(x), exact) + 1e-6
        fast[1].running_mean += 1e-3  # negative control, and nothing is cached
        assert rms_error(fast(x), exact) > 1e-5


def test_weights_written_behind_autograds_back_count() -> None:
    """``.data`` leaves the version of a tensor alone, so a folded weight must not be kept."""
    model = normalised().eval()
    fastconv.accelerate(model)
    x = torch.randn(4, 3, 20, 20)
    with torch.no_grad():
        model(x)
        model[0].weight.data.mul_(3)
        model[1].weight.data.add_(1)
        expected = copy.deepcopy(model)
        fastconv.restore(expected)
        torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-5)


def test_training_statistics_and_switches() -> None:
    model = normalised()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    for step in range(3):
        x = torch.randn(4, 3, 12, 12)
        for net in (model, fast):
            net.train()
            net(x).sum().backward()
            net.eval()
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(fast[1], key), getattr(model[1], key))
        assert fast[1].num_batches_tracked == step + 1


def test_training_runs_normalisation_and_relu_as_one() -> None:
    """With the values of the single layers, bit for bit, and single again under a hook."""
    model = normalised()
    fast, single = copy.deepcopy(model), copy.deepcopy(model)
    fastconv.accelerate(fast)
    fastconv.accelerate(single, fuse=False)
    x = torch.randn(4, 3, 20, 20)
    operators = operators_of(lambda: copy.deepcopy(fast)(x))
    assert "fastconv._batch_norm_training" in operators
    assert not operators & {"aten.relu", "aten.clamp_min", "fastconv.relu"}
    seen: list[Tensor] = []
    for training in (True, True, False):
        found = [gradients(net.train(training), x) for net in (model, fast, single)]
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found[2][name], value, rtol=1e-4, atol=1e-4)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(fast.state_dict()[key], value)
    hook = fast[1].register_forward_hook(lambda module, args, output: seen.append(output))
    before = fast.train()(x)
    assert seen[0].min() < 0  # before the relu
    hook.remove()
    torch.testing.assert_close(fast(x), before)


class Block(nn.Module):
    """Calls one relu twice: behind a normalisation, and behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        return self.relu(y * 0.5 + x)


@pytest.mark.parametrize("watched", [None, "bn", "relu"])
def test_relu_in_place_behind_a_normalisation_outside_of_a_sequential(watched: str | None) -> None:
    """Its backward pass is the normalisation's; whoever looks sees what torch shows."""
    model = Block()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(4, 8, 50, 50)
    seen: list[list[Tensor]] = [[], []]
    for net, tensors in zip((model, fast), seen, strict=True):

        def look(module: nn.Module, args: Any, y: Tensor, tensors: list[Tensor] = tensors) -> None:
            tensors.append(y.detach().clone())
            y.register_hook(lambda grad: tensors.append(grad))

        if watched is not None:
            getattr(net, watched).register_forward_hook(look)
    found = [gradients(net, x) for net in (model, fast)]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)
    assert [len(tensors) for tensors in seen] == [{None: 0, "bn": 2, "relu": 4}[watched]] * 2
    for theirs, ours in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    fast.bn.register_forward_hook(lambda module, args, y: None)  # does not count
    with torch.profiler.profile() as profile:
        fast(x).sum().backward()
    calls = {row.key: row.count for row in profile.key_averages()}
    assert calls["fastconv::_relu_backward"] == (2 if watched == "bn" else 1)


def test_normalisation_before_the_convolution() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fast = copy.deepcopy(model)
    report = fastconv.accelerate(fast)
    assert [entry.types for entry in report.fused] == [
        ("BatchNorm2d", "ReLU"),
        ("Conv2d", "BatchNorm2d"),
    ]
    x = torch.randn(4, 3, 12, 12)
    for training in (True, False):
        theirs, ours = (gradients(net.train(training), x) for net in (model, fast))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4)


def test_restored_and_left_out_normalisation_is_torchs() -> None:
    model = normalised()
    fastconv.accelerate(model)
    fastconv.restore(model)
    x = torch.randn(4, 3, 12, 12)
    assert "aten.native_batch_norm" in operators_of(lambda: model(x))
    report = fastconv.accelerate(model, filter_fn=lambda module, name: name != "1")
    assert ("1", "filter_fn left it out") in [(entry.name, entry.reason) for entry in report.left]
    assert "aten.native_batch_norm" in operators_of(lambda: model(x))
    assert "aten.native_batch_norm" in operators_of(lambda: model.eval()(x))


def test_synchronised_and_lazy_normalisation_is_left_alone() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.LazyBatchNorm2d(), nn.BatchNorm3d(2))
    report = fastconv.accelerate(model)
    assert not report.swapped
    assert {entry.reason for entry in report.left} == {"fastconv has no kernel for it"}


def test_without_statistics_nothing_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)).eval()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(4, 3, 12, 12)
    assert not runs_fused(fast, x)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_eval_with_gradients_of_its_parameters_is_not_folded() -> None:
    model = normalised().eval()
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(4, 3, 12, 12)
    oracle = gradients(copy.deepcopy(model).double(), x.double())
    theirs, ours = gradients(model, x), gradients(fast, x)
    for name, exact in oracle.items():
        assert rms_error(ours[name], exact) <= 2 * rms_error(theirs[name], exact) + 1e-6, name


def test_frozen_and_folded_it_still_passes_gradients_on() -> None:
    model = normalised().eval().requires_grad_(False)
    fast = copy.deepcopy(model)
    fastconv.accelerate(fast)
    x = torch.randn(4, 3, 12, 12)
    names = operators_of(lambda: fast(x.clone().requires_grad_()))
    assert names & BLOCK
    theirs, ours = gradients(model, x), gradients(fast, x)
    assert {*ours} == {"output", "input"}
    torch.testing.assert_close(ours["input"], theirs["input"], rtol=1e-4, atol=1e-5)


# --- Linear layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parity_of_linear_chains(activation: str) -> None:
    make = ACTIVATIONS[activation]
    model = nn.Sequential(
        nn.Linear(9, 16), make(), nn.Linear(16, 12), make(), nn.Linear(12, 5), make()
    )
    check_parity(model, torch.randn(7, 9))
    report = fastconv.accelerate(model)
    assert report.fused[0].layers == ("0", "1", "2", "3", "4")
    assert runs_fused(model, torch.randn(7, 9))
    assert not runs_fused(model, torch.randn(2, 7, 9))
    torch.testing.assert_close(
        model(torch.ones(2, 7, 9)), model(torch.ones(14, 9)).view(2, 7, 5), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(9, 8), nn.ReLU(), nn.Tanh(), nn.Linear(8, 5)],
        [nn.Linear(9, 8), nn.Linear(8, 5)],
        [nn.Linear(9, 8, bias=False), nn.ReLU(), nn.Linear(8, 5)],
        [nn.Linear(9, 40000), nn.ReLU(), nn.Linear(40000, 5)],
        [nn.Linear(9, 8), nn.ReLU()],
    ],
)
def test_other_linear_layers_stay(layers: list[nn.Module]) -> None:
    assert not fastconv.accelerate(nn.Sequential(*layers)).fused


def test_linear_layers_and_the_filter() -> None:
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 5))
    assert not fastconv.accelerate(model, filter_fn=lambda module, name: name != "2").fused
    assert fastconv.accelerate(model, filter_fn=lambda module, name: True).fused


def test_partly_frozen_linear_layers_compute_no_needless_gradient() -> None:
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 5))
    model[0].requires_grad_(False)
    fastconv.accelerate(model)
    y = model(torch.randn(3, 9))
    y.sum().backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None
    assert "fastconv.mlp" not in operators_of(lambda: model(torch.randn(3, 9)))
