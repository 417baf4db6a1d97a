# SPDX-License-Identifier: MIT
"""The inputs that PyTorch tests its own operators, modules and optimizers with, run through ours.

They come from ``torch.testing._internal``, which is no public interface; a torch without it fails
here, not silently.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from reference import assert_parity
from torch import Tensor
from torch.testing import assert_close
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_optimizers import optim_db
from torch.utils._pytree import tree_map

from fastconv import functional, nn, optim

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "nn.functional.conv2d": functional.conv2d,
    "nn.functional.max_pool2d": functional.max_pool2d,
    "nn.functional.avg_pool2d": functional.avg_pool2d,
    "nn.functional.batch_norm": functional.batch_norm,
    "nn.functional.relu": functional.relu,
}
OPERATORS = {info.name: info for info in op_db if info.name in FUNCTIONS}
FUNCTION_DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16,
    torch.int64, torch.int32, torch.complex64,
]  # fmt: skip

MODULES: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.AvgPool2d: nn.AvgPool2d,
    torch.nn.BatchNorm1d: nn.BatchNorm1d,
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.LSTM: nn.LSTM,
    torch.nn.LSTMCell: nn.LSTMCell,
}
MODULE_INFOS = {info.module_cls: info for info in module_db if info.module_cls in MODULES}

OPTIMIZERS: dict[type[torch.optim.Optimizer], type[torch.optim.Optimizer]] = {
    torch.optim.Adam: optim.Adam,
    torch.optim.AdamW: optim.AdamW,
}
OPTIMIZER_INFOS = {info.optim_cls: info for info in optim_db if info.optim_cls in OPTIMIZERS}


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def gradients(results: Any, leaves: list[Tensor], by_torch: Any) -> list[Tensor | None]:
    """Gradients of the leaves from all results that torch can differentiate."""
    pairs = zip(tensors_in(results), tensors_in(by_torch), strict=True)
    outputs = [result for result, wanted in pairs if wanted.requires_grad]
    if not outputs or not leaves:
        return []
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]
    return list(torch.autograd.grad(outputs, leaves, weights, allow_unused=True))


def in_double(value: Any) -> Any:
    """The same values in float64, for floating-point tensors."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def leaves_of(arguments: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(arguments) if tensor.requires_grad]


def assert_same_gradients(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine is None) == (wanted is None)
        if wanted is not None:
            assert_close(mine, wanted)


def assert_as_exact(
    ours: list[Tensor | None], theirs: list[Tensor | None], exact: list[Tensor | None]
) -> None:
    """The parity rule: torch adds up gradients in bfloat16, ours are rounded once."""
    for mine, wanted, oracle in zip(ours, theirs, exact, strict=True):
        assert (mine is None) == (wanted is None)
        if wanted is not None:
            assert_parity(mine, wanted, oracle, "gradient")


def test_every_operator_module_and_optimizer_has_test_data() -> None:
    assert OPERATORS.keys() == FUNCTIONS.keys()
    assert MODULE_INFOS.keys() == MODULES.keys()
    assert OPTIMIZER_INFOS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("dtype", FUNCTION_DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operator_samples(name: str, dtype: torch.dtype) -> None:
    info = OPERATORS[name]
    if dtype not in info.supported_dtypes("cpu"):
        pytest.skip(f"torch's own {name} does not take {dtype}")
    differentiates = dtype in info.supported_backward_dtypes("cpu")
    samples = list(info.sample_inputs("cpu", dtype, requires_grad=differentiates))
    # Max pooling has 1,440 samples per dtype: all of them in float32, every seventh elsewhere.
    step = 7 if len(samples) > 100 and dtype != torch.float32 else 1
    assert samples
    for sample in samples[::step]:
        arguments = (sample.input, sample.args, sample.kwargs)
        wanted = info.op(sample.input, *sample.args, **sample.kwargs)
        result = FUNCTIONS[name](sample.input, *sample.args, **sample.kwargs)
        assert_close(result, wanted)
        leaves = leaves_of(arguments)
        found, by_torch = (gradients(r, leaves, wanted) for r in (result, wanted))
        if dtype == torch.bfloat16:
            input, args, kwargs = tree_map(in_double, arguments)
            exact = info.op(input, *args, **kwargs)
            oracle = gradients(exact, leaves_of((input, args, kwargs)), wanted)
            assert_as_exact(found, by_torch, oracle)
        else:
            assert_same_gradients(found, by_torch)


# Batch normalisation and relu have none.
REFUSED = [name for name in FUNCTIONS if OPERATORS[name].error_inputs_func is not None]


@pytest.mark.parametrize("name", REFUSED)
def test_operator_errors(name: str) -> None:
    """What torch refuses is refused, with the same type of error or a more precise one."""
    assert len(REFUSED) >= 3
    errors = list(OPERATORS[name].error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises((error.error_type, ValueError, RuntimeError, TypeError)):
            FUNCTIONS[name](sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_module_samples(kind: type[torch.nn.Module], dtype: torch.dtype, training: bool) -> None:
    info = MODULE_INFOS[kind]
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )
    assert inputs
    for sample in inputs:
        constructor, forward = sample.constructor_input, sample.forward_input
        if forward is None:
            continue
        theirs = kind(*constructor.args, **constructor.kwargs).to(dtype).train(training)
        ours = MODULES[kind](*constructor.args, **constructor.kwargs).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        wanted = theirs(*copy.deepcopy(forward.args), **copy.deepcopy(forward.kwargs))
        result = ours(*forward.args, **forward.kwargs)
        if training and getattr(theirs, "dropout", 0.0) > 0.0:
            continue  # the masks are drawn in another order
        for a, b in zip(tensors_in(result), tensors_in(wanted), strict=True):
            assert_close(a, b)
        parameters = [[*module.parameters()] for module in (ours, theirs)]
        outputs = [[t for t in tensors_in(r) if t.requires_grad] for r in (result, wanted)]
        if not parameters[0] or not outputs[0]:
            continue
        weights = [torch.randn_like(t) for t in outputs[1]]
        grads = [
            torch.autograd.grad(out, params, weights)
            for out, params in zip(outputs, parameters, strict=True)
        ]
        for mine, target in zip(*grads, strict=True):
            assert_close(mine, target)


OPTIMIZER_CASES = [
    pytest.param(kind, sample.kwargs, id=f"{kind.__name__}-{sample.desc}")
    for kind, info in OPTIMIZER_INFOS.items()
    for sample in info.optim_inputs_func(device="cpu")
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZER_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_optimizer_samples(
    kind: type[torch.optim.Optimizer], options: dict[str, Any], dtype: torch.dtype
) -> None:
    """The training of a small function, thirty steps."""

    def train(make: Callable[..., torch.optim.Optimizer]) -> list[Tensor]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, dtype=dtype)) for s in ((10, 5), (10,), ())]
        target = torch.randn(7, 5, dtype=dtype)
        optimizer = make(params, **copy.deepcopy(options))
        for _ in range(30):
            optimizer.zero_grad()
            loss = torch.tanh(target @ params[0].T + params[1] * params[2]).square().sum()
            loss.backward()
            optimizer.step()
        return params

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = train(kind)
        result = train(OPTIMIZERS[kind])
    for a, b in zip(result, wanted, strict=True):
        assert_close(a, b)
