# SPDX-License-Identifier: MIT
"""Networks of every family, accelerated: equal results, statistics, hooks; and restored."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import max_error, rms
from torch import Tensor, nn
from zoo import ZOO, Entry, Task
from zoo.steps import oracle_step, steps_by_torch, training_step, violations

import fastconv

BATCH = 4
PUBLISHED_PARAMETERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "squeezenet": 1_235_496,
    "googlenet": 13_004_888,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
    "mobilenetv2": 3_504_872,
    "unet": 31_031_810,
    "crnn": 8_331_301,
}
SERVED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.LSTM, nn.LSTMCell)


@pytest.fixture(params=ZOO)
def entry(request: pytest.FixtureRequest) -> Entry:
    return ZOO[request.param]


def make(entry: Entry) -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    return entry.small(), entry.small_task(BATCH, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_networks_have_their_published_size(name: str) -> None:
    with torch.device("meta"):
        model = ZOO[name].full()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS[name]


def test_inference(entry: Entry) -> None:
    model, task = make(entry)
    model.eval()
    with torch.no_grad():
        wanted = model(*task.inputs)
        assert fastconv.accelerate(model).swapped or entry.name == "mlp"
        got = model(*task.inputs)
    assert max_error(got, wanted.double()) <= 1e-4 * rms(wanted)
    if entry.scores is not None:
        assert torch.equal(got.argmax(entry.scores), wanted.argmax(entry.scores))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch warns when oneDNN is switched off
def test_training_step(entry: Entry) -> None:
    model, task = make(entry)
    oracle = oracle_step(model, entry, task)
    by_torch = steps_by_torch(model, entry, task)
    fastconv.accelerate(model)
    assert not violations(training_step(model, entry, task), by_torch, oracle)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("cifar_cnn", "features.3.weight"),
        ("resnet18", "layer2.0.conv1.weight"),
        ("lstm_lm", "rnn.weight_hh_l0"),
    ],
)
def test_training_step_notices_one_wrong_weight(name: str, weight: str) -> None:
    """Negative control: a weight that is off by a ten-thousandth of its tensor's largest."""
    entry = ZOO[name]
    model, task = make(entry)
    oracle = oracle_step(model, entry, task)
    by_torch = [training_step(copy.deepcopy(model), entry, task)]
    fastconv.accelerate(model)
    wrong = model.get_parameter(weight)
    with torch.no_grad():
        wrong.view(-1)[wrong.numel() // 2] += 1e-4 * wrong.abs().max()
    assert violations(training_step(model, entry, task), by_torch, oracle)


def test_state_stays_and_restore_is_bitwise(entry: Entry) -> None:
    model, task = make(entry)
    untouched = copy.deepcopy(model)
    parameters = {name: id(p) for name, p in model.named_parameters()}
    fastconv.accelerate(model)
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert list(model.state_dict()) == list(untouched.state_dict())
    for ours, theirs in zip(
        model.state_dict().values(), untouched.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    entry.small().load_state_dict(model.state_dict(), strict=True)
    assert [type(m) for m in model.modules()] == [type(m) for m in untouched.modules()]

    fastconv.restore(model)
    for ours, theirs in zip(model.modules(), untouched.modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys()
    wanted = training_step(untouched, entry, task)
    for name, got in training_step(model, entry, task).items():
        assert torch.equal(got, wanted[name]), name


def record_hooks(model: nn.Module) -> list[tuple[str, str, list[torch.Size]]]:
    """Makes every module write down its name, the kind of hook and the shapes it sees."""
    seen: list[tuple[str, str, list[torch.Size]]] = []

    def shapes(values: object) -> list[torch.Size]:
        if isinstance(values, Tensor):
            return [values.shape]
        nested = values if isinstance(values, (tuple, list)) else ()
        return [shape for value in nested for shape in shapes(value)]

    for name, module in model.named_modules():
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.append((name, "before", shapes(inputs)))
        )
        module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.append(
                (name, "after", shapes(inputs) + shapes(output))
            )
        )
        # What a full backward hook passes on may not be changed in place, as activations and skips
        # would; what these layers return goes into neither, once `inplace` is off.
        if hasattr(module, "inplace"):
            module.inplace = False
        if isinstance(module, SERVED):
            module.register_full_backward_hook(
                lambda _, grad_in, grad_out, name=name: seen.append(
                    (name, "backward", shapes(grad_in) + shapes(grad_out))
                )
            )
    return seen


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the images need no gradient
def test_hooks_see_the_same(entry: Entry) -> None:
    seen = []
    for accelerated in (False, True):
        model, task = make(entry)
        if accelerated:
            fastconv.accelerate(model)
        calls = record_hooks(model)
        training_step(model, entry, task)
        seen.append(calls)
    assert seen[0] == seen[1]
    called = {(name, kind) for name, kind, _ in seen[0]}
    for name, module in model.named_modules():
        if isinstance(module, SERVED):
            assert {(name, "before"), (name, "after"), (name, "backward")} <= called


def test_optimizer_steps_along(entry: Entry) -> None:
    """Three steps of Adam, the optimizer exchanged too: the losses follow torch's."""
    losses = []
    for accelerated in (False, True):
        model, task = make(entry)
        optimizer = torch.optim.Adam(model.parameters(), 1e-5)
        if accelerated:
            fastconv.accelerate(model, optimizer=optimizer)
            assert isinstance(optimizer, fastconv.optim.Adam)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            losses[-1].append(training_step(model, entry, task)["loss"].item())
            optimizer.step()
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[1][2] < losses[1][0]
