# SPDX-License-Identifier: MIT
"""torch.compile(backend="fastconv"): what is rewritten, what is left, and equal results."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import assert_parity, max_error, rms
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, Entry
from zoo.steps import oracle_step, steps_by_torch, training_step, violations

from fastconv import compile_backend

Function = Callable[..., Tensor]
WEIGHT, BIAS = torch.randn(5, 3, 3, 3), torch.randn(5)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """No graph of another test, and RNN modules in the graphs."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield


def compiled_with(changes: list[str], function: Any, **options: Any) -> Any:
    """The function compiled as the backend would, noting what was changed in its graphs."""

    def note(graph_module: torch.fx.GraphModule, _: Any) -> Any:
        changes.extend(compile_backend.rewrite(graph_module))
        return graph_module.forward

    return torch.compile(function, backend=note, fullgraph=True, **options)


def convolved(x: Tensor, **options: Any) -> Tensor:
    return F.conv2d(x, WEIGHT, BIAS, **options)


def assert_follows(function: Function, expected: list[str], *, size: int = 12) -> None:
    """The graph is changed as expected, and output and input gradient follow torch's."""
    changes: list[str] = []
    x = torch.randn(2, 3, size, size)
    fast = compiled_with(changes, function)
    results = []
    for call, kind in ((fast, torch.float32), (function, torch.float32), (function, torch.float64)):
        leaf = x.to(kind, copy=True).requires_grad_()
        if kind == torch.float64:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(globals(), "WEIGHT", WEIGHT.double())
                patch.setitem(globals(), "BIAS", BIAS.double())
                output = call(leaf)
        else:
            output = call(leaf)
        (grad,) = torch.autograd.grad(output.square().sum(), leaf)
        results.append((output.detach(), grad))
    assert changes == expected
    for ours, by_torch, exact in zip(*results, strict=True):
        assert_parity(ours, by_torch, exact, str(expected))


CHAINS: dict[str, tuple[Function, list[str]]] = {
    "conv": (lambda x: convolved(x, stride=2), ["conv2d"]),
    "relu": (lambda x: F.relu(convolved(x)), ["conv_block2d: conv2d, relu"]),
    "relu in place": (
        lambda x: F.relu(convolved(x), inplace=True),
        ["conv_block2d: conv2d, relu"],
    ),
    "method": (lambda x: convolved(x).tanh(), ["conv_block2d: conv2d, tanh"]),
    "method in place": (
        lambda x: convolved(x, padding=1).sigmoid_(),
        ["conv_block2d: conv2d, sigmoid"],
    ),
    "leaky slope": (
        lambda x: F.leaky_relu(convolved(x), 0.3),
        ["conv_block2d: conv2d, leaky_relu"],
    ),
    "pool": (lambda x: F.max_pool2d(convolved(x), 2), ["conv_block2d: conv2d, max_pool2d"]),
    "all three": (
        lambda x: F.max_pool2d(torch.relu(convolved(x, padding=1)), 2, 2),
        ["conv_block2d: conv2d, relu, max_pool2d"],
    ),
    "average, steps": (
        lambda x: F.avg_pool2d(torch.tanh(convolved(x)), 3, 2),
        ["conv_block2d: conv2d, tanh, avg_pool2d"],
    ),
    "padding by name": (
        lambda x: F.relu(convolved(x, padding="same")),
        ["conv_block2d: conv2d, relu"],
    ),
    "padded pool": (
        lambda x: F.max_pool2d(F.relu(convolved(x)), 3, 2, padding=1),
        ["conv_block2d: conv2d, relu", "max_pool2d"],
    ),
    "ceiling": (
        lambda x: F.max_pool2d(convolved(x), 3, 2, ceil_mode=True),
        ["conv2d", "max_pool2d"],
    ),
    "divisor": (
        lambda x: F.avg_pool2d(convolved(x), 2, divisor_override=3),
        ["conv2d", "avg_pool2d"],
    ),
    "indices": (
        lambda x: F.max_pool2d(convolved(x), 2, return_indices=True)[0],
        ["conv2d", "max_pool2d"],
    ),
    "pool alone": (lambda x: F.avg_pool2d(x, 2, count_include_pad=False, padding=1),
                   ["avg_pool2d"]),
    "pool first": (
        lambda x: F.relu(F.max_pool2d(convolved(x), 2)),
        ["conv_block2d: conv2d, max_pool2d"],
    ),
    "result used twice": (
        lambda x: (lambda y: F.relu(y) + y)(convolved(x)),
        ["conv2d"],
    ),
    "activation used twice": (
        lambda x: (lambda y: F.max_pool2d(y, 2).sum() + y)(F.relu(convolved(x))),
        ["conv_block2d: conv2d, relu", "max_pool2d"],
    ),
    "another activation": (lambda x: F.relu6(convolved(x)), ["conv2d"]),
    "normalisation": (lambda x: F.batch_norm(x, None, None, training=True), ["batch_norm"]),
    "normalisation and relu": (
        lambda x: F.relu(F.batch_norm(convolved(x), None, None, BIAS, training=True)),
        ["conv2d", "batch_norm: batch_norm, relu"],
    ),
    "normalisation and another activation": (
        lambda x: torch.tanh(F.batch_norm(convolved(x), None, None, None, BIAS, True)),
        ["conv2d", "batch_norm"],
    ),
    "two convolutions": (
        lambda x: F.relu(F.conv2d(F.relu(convolved(x)), WEIGHT[:, :1].repeat(1, 5, 1, 1))),
        ["conv_block2d: conv2d, relu", "conv_block2d: conv2d, relu"],
    ),
    "nothing to do": (lambda x: x.exp().cumsum(1), []),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chain(name: str) -> None:
    assert_follows(*CHAINS[name])


def test_input_changed_between_the_layers() -> None:
    """The block stands where the convolution stood, not where the activation did."""

    def function(x: Tensor) -> Tensor:
        x = x * 1.0
        y = convolved(x)
        x.add_(1.0)
        return F.relu(y) + x.mean()

    changes: list[str] = []
    x = torch.randn(2, 3, 8, 8)
    got = compiled_with(changes, function)(x)
    assert changes == ["conv_block2d: conv2d, relu"]
    assert max_error(got, function(x).double()) <= 1e-5 * rms(got)


def test_modes_switched_between_the_layers() -> None:
    def function(x: Tensor) -> Tensor:
        y = convolved(x)
        with torch.no_grad():
            z = F.relu(y)
        return y.mean() + z

    def only_detached(x: Tensor) -> Tensor:
        y = convolved(x)
        with torch.no_grad():
            return F.relu(y)

    assert_follows(function, ["conv2d"])
    changes: list[str] = []
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    assert not compiled_with(changes, only_detached)(x).requires_grad
    assert changes == ["conv2d"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_on_torch(dtype: torch.dtype) -> None:
    changes: list[str] = []
    x, weight = torch.randn(1, 3, 8, 8, dtype=dtype), WEIGHT.to(dtype)

    def function(x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(F.conv2d(x, weight)), 2)

    assert torch.equal(compiled_with(changes, function)(x), function(x))
    assert changes == []


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_stays_on_torch(inside: bool) -> None:
    changes: list[str] = []

    def plain(x: Tensor) -> Tensor:
        return F.relu(convolved(x))

    def with_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(x)

    x = torch.randn(1, 3, 8, 8)
    wanted = with_autocast(x)
    if inside:
        got = compiled_with(changes, with_autocast)(x)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            got = compiled_with(changes, plain)(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, wanted)
    assert changes == []


def test_double_backward() -> None:
    function = CHAINS["all three"][0]
    fast = torch.compile(function, backend="fastconv", fullgraph=True)
    grads = []
    for call in (fast, function):
        x = torch.linspace(-1, 1, 108).sin().reshape(1, 3, 6, 6).requires_grad_()
        (grad,) = torch.autograd.grad(call(x).pow(3).sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert max_error(grads[0], grads[1].double()) <= 1e-4 * rms(grads[1])


def test_graph_inside_a_checkpoint() -> None:
    changes: list[str] = []

    def function(x: Tensor) -> Tensor:
        return checkpoint(CHAINS["all three"][0], x * 1.0, use_reentrant=False)

    x = torch.randn(2, 3, 8, 8)
    results = []
    for call in (compiled_with(changes, function), function):
        leaf = x.clone().requires_grad_()
        output = call(leaf)
        results.append([output, *torch.autograd.grad(output.sum(), leaf)])
    assert changes == ["conv_block2d: conv2d, relu, max_pool2d"]
    for ours, theirs in zip(*results, strict=True):
        assert max_error(ours, theirs.double()) <= 1e-5 * rms(theirs)


# --- Recurrent layers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True, "bidirectional": True, "num_layers": 2},
        {"proj_size": 3, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("states", [False, True])
def test_lstm(options: dict[str, Any], states: bool) -> None:
    changes: list[str] = []
    lstm = nn.LSTM(4, 6, **options)
    cells = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x = torch.randn(5, 5, 4)
    hx = (torch.randn(cells, 5, options.get("proj_size", 6)), torch.randn(cells, 5, 6))
    results = []
    for call in (compiled_with(changes, lstm), lstm):
        lstm.zero_grad()
        output, (h, c) = call(x, hx) if states else call(x)
        (output.sin().sum() + h.sum() + c.sum()).backward()
        results.append([output, h, c, *(p.grad for p in lstm.parameters())])
    assert changes == ["lstm"]
    for ours, theirs in zip(*results, strict=True):
        assert max_error(ours, theirs.double()) <= 1e-5 * rms(theirs)


def test_lstm_cell() -> None:
    changes: list[str] = []
    cell = nn.LSTMCell(4, 6)

    def function(x: Tensor) -> Tensor:
        h, c = cell(x[0])
        for row in x[1:]:
            h, c = cell(row, (h, c))
        return h + c

    x = torch.randn(4, 3, 4)
    got = compiled_with(changes, function)(x)
    assert max_error(got, function(x).double()) <= 1e-5 * rms(got)
    assert changes == ["lstm_cell"] * 4


def test_lstm_layers_are_not_captured_by_default() -> None:
    """Dynamo leaves them out, and the rest still compiles; the results stay right."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 6))
    x = torch.randn(3, 2, 4)
    with torch._dynamo.config.patch(allow_rnn=False):
        got = torch.compile(model, backend="fastconv")(x)[0]
    assert max_error(got, model(x)[0].double()) <= 1e-5 * rms(got)


# --- Whole networks ------------------------------------------------------------------------------


LARGE = {"googlenet", "resnet50", "densenet121", "mobilenetv2"}  # Dynamo takes its time


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in ZOO if n != "mlp"]
)
def entry(request: pytest.FixtureRequest) -> Entry:
    return ZOO[request.param]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch warns when oneDNN is switched off
def test_training_step_of_networks(entry: Entry) -> None:
    torch.manual_seed(0)
    model, task = entry.small(), entry.small_task(4, torch.Generator().manual_seed(0))
    oracle = oracle_step(model, entry, task)
    by_torch = steps_by_torch(model, entry, task)
    changes: list[str] = []
    call = compiled_with(changes, model)
    assert not violations(training_step(model, entry, task, call), by_torch, oracle)
    assert changes


@pytest.mark.parametrize("name", ["cifar_cnn", "unet", "crnn"])
def test_inference_of_networks(name: str) -> None:
    entry = ZOO[name]
    model = entry.small().eval()
    task = entry.small_task(3, torch.Generator().manual_seed(0))
    fast = torch.compile(model, backend="fastconv", fullgraph=True)
    with torch.no_grad():
        got, wanted = fast(*task.inputs), model(*task.inputs)
    assert max_error(got, wanted.double()) <= 1e-5 * rms(wanted)


@pytest.mark.parametrize("name", ["cifar_cnn", "lstm_lm"])
def test_one_graph_for_every_batch_size(name: str) -> None:
    entry = ZOO[name]
    model = entry.small().eval()
    counter = CompileCounterWithBackend("fastconv")
    fast = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for batch in (4, 7, 2, 5):
        task = entry.small_task(batch, torch.Generator().manual_seed(batch))
        got, wanted = fast(*task.inputs), model(*task.inputs)
        assert max_error(got, wanted.double()) <= 1e-5 * rms(wanted)
    assert counter.frame_count == 1


def test_parameters_may_be_exchanged() -> None:
    """Weights are arguments of the graph: an optimizer's step or load_state_dict shows at once."""
    model = ZOO["cifar_cnn"].small()
    other = ZOO["cifar_cnn"].small()
    fast = torch.compile(model, backend="fastconv")
    x = torch.randn(2, 3, 32, 32)
    before = fast(x)
    model.load_state_dict(other.state_dict())
    assert max_error(fast(x), other(x).double()) <= 1e-5 * rms(other(x))
    assert not torch.equal(before, fast(x))


# --- Options and registration --------------------------------------------------------------------


@pytest.mark.slow
def test_rest_goes_to_an_inner_backend() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.Softplus(),
    )
    reference = copy.deepcopy(model)
    fast = torch.compile(model, backend="fastconv", options={"inner": "inductor"}, dynamic=True)
    for batch in (3, 6):
        x = torch.randn(batch, 3, 8, 8)
        model.zero_grad()
        reference.zero_grad()
        got, wanted = fast(x), reference(x)
        got.square().sum().backward()
        wanted.square().sum().backward()
        assert max_error(got, wanted.double()) <= 1e-5 * rms(wanted)
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            assert max_error(ours.grad, theirs.grad.double()) <= 1e-5 * rms(theirs.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "nonsense"}, "fastconv backend: expected inner among .*, got 'nonsense'"),
        ({"inner": "fastconv"}, "fastconv backend: expected inner among .*, got 'fastconv'"),
        ({"speed": 11}, r"fastconv backend: expected no option but inner, got \['speed'\]"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    fast = torch.compile(lambda x: x + 1, backend="fastconv", options=options)
    with pytest.raises(Exception, match=message):
        fast(torch.ones(2))


def test_backend_is_found_without_importing_fastconv(tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "assert 'fastconv' in torch._dynamo.list_backends()\n"
        "f = torch.compile(lambda x: torch.conv2d(x, x).relu(), backend='fastconv')\n"
        "assert 'fastconv' in sys.modules\n"
        "print(f(torch.ones(1, 1, 3, 3)).item())\n"
        "import fastconv.compile_backend\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "9.0\n"), done.stderr


def test_importing_fastconv_leaves_dynamo_alone(tmp_path: Path) -> None:
    program = "import sys, fastconv; print('torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout == "False\n", done.stderr
