# SPDX-License-Identifier: MIT
"""Every misuse of conv2d raises ValueError or RuntimeError, says what was expected and what came.

The checks live in the registered operator, so each is also made on `torch.ops.fastconv.conv2d`.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from subprocesses import run_python

import fastconv.functional as F

INT64_MAX = 2**63 - 1


def x(*shape: int, **kwargs: Any) -> torch.Tensor:
    return torch.ones(*(shape or (2, 4, 6, 6)), **kwargs)


def w(*shape: int, **kwargs: Any) -> torch.Tensor:
    return torch.ones(*(shape or (8, 4, 3, 3)), **kwargs)


# id: (operands, options, exception, what the message must say)
BAD_CALLS: dict[str, tuple[tuple, dict, type[Exception], str]] = {
    "input-rank-2": ((x(4, 6), w()), {}, ValueError,
        "expected input of shape [N, C, H, W] or [C, H, W], got [4, 6]"),
    "input-rank-5": ((x(1, 2, 4, 6, 6), w()), {}, ValueError, "got [1, 2, 4, 6, 6]"),
    "input-rank-0": ((torch.tensor(1.0), w()), {}, ValueError, "expected input of shape"),
    "weight-rank-3": ((x(), w(8, 4, 3)), {}, ValueError,
        "expected weight of shape [out, in/groups, kh, kw], got [8, 4, 3]"),
    "weight-rank-5": ((x(), w(8, 4, 3, 3, 1)), {}, ValueError, "got [8, 4, 3, 3, 1]"),
    "channels-differ": ((x(), w(8, 3, 3, 3)), {}, ValueError, "got [8, 3, 3, 3]"),
    "channels-differ-unbatched": ((x(5, 6, 6), w()), {}, ValueError, "an input of 5 channels"),
    "groups-do-not-divide-input": ((x(2, 5, 6, 6), w(8, 2, 3, 3)), {"groups": 2}, ValueError,
        "groups 2"),
    "groups-do-not-divide-output": ((x(), w(7, 2, 3, 3)), {"groups": 2}, ValueError,
        "expected groups to divide the output channels, got groups 2 and 7"),
    "groups-0": ((x(), w()), {"groups": 0}, ValueError, "expected groups of at least 1, got 0"),
    "groups-negative": ((x(), w()), {"groups": -4}, ValueError, "got -4"),
    "bias-too-long": ((x(), w(), torch.ones(9)), {}, ValueError,
        "expected bias of shape [8], got [9]"),
    "bias-rank-2": ((x(), w(), torch.ones(8, 1)), {}, ValueError,
        "expected bias of shape [8], got [8, 1]"),
    "bias-rank-0": ((x(), w(), torch.tensor(1.0)), {}, ValueError, "expected bias of shape [8]"),
    "kernel-0": ((x(), w(8, 4, 0, 3)), {}, ValueError, "expected a kernel of at least 1 x 1"),
    "kernel-larger-than-input": ((x(), w(8, 4, 7, 3)), {}, ValueError,
        "expected a kernel no larger than the padded input, got height 6"),
    "kernel-larger-dilated": ((x(), w()), {"dilation": (1, 3)}, ValueError, "got width 6"),
    "empty-plane": ((x(2, 4, 0, 6), w()), {}, ValueError, "got height 0"),
    "stride-0": ((x(), w()), {"stride": 0}, ValueError,
        "expected stride of at least 1, got [0, 0]"),
    "stride-negative": ((x(), w()), {"stride": (1, -2)}, ValueError, "got [1, -2]"),
    "padding-negative": ((x(), w()), {"padding": (-1, 0)}, ValueError,
        "expected padding of at least 0, got [-1, 0]"),
    "dilation-0": ((x(), w()), {"dilation": 0}, ValueError, "expected dilation of at least 1"),
    "dilation-negative": ((x(), w()), {"dilation": -1}, ValueError, "got [-1, -1]"),
    "stride-three-values": ((x(), w()), {"stride": (1, 1, 1)}, ValueError, "got [1, 1, 1]"),
    "padding-three-values": ((x(), w()), {"padding": (1, 1, 1)}, ValueError, "got [1, 1, 1]"),
    "stride-no-values": ((x(), w()), {"stride": ()}, ValueError, "expected stride"),
    "padding-overflows": ((x(), w()), {"padding": INT64_MAX}, ValueError, "64-bit"),
    "padding-overflows-doubled": ((x(), w()), {"padding": 2**62}, ValueError, "64-bit"),
    "dilation-overflows": ((x(), w()), {"dilation": INT64_MAX}, ValueError, "64-bit"),
    "dilation-enormous": ((x(), w()), {"dilation": 2**40}, ValueError, "no larger than the padded"),
    "output-overflows": ((x(), w()), {"padding": 2**40}, ValueError, "fits 64-bit sizes"),
    "dtype-of-weight": ((x(), w().double()), {}, RuntimeError,
        "expected weight of the input's dtype Float, got Double"),
    "dtype-of-bias": ((x(), w(), torch.ones(8).double()), {}, RuntimeError,
        "expected bias of the input's dtype Float, got Double"),
    "dtype-mixed-half": ((x().bfloat16(), w()), {}, RuntimeError, "dtype"),
    "dtype-bool": ((x().bool(), w().bool()), {}, RuntimeError,
        "expected tensors of floating point, complex or integer numbers, got Bool"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name: str) -> None:
    operands, options, error, message = BAD_CALLS[name]
    with pytest.raises(error, match="^conv2d: .*" + re.escape(message)) as raised:
        F.conv2d(*operands, **options)
    # Exactly these types: ValueError is not enough where a caller expects RuntimeError.
    assert raised.type is error
    assert len(str(raised.value).splitlines()) == 1
    assert "got" in str(raised.value)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_with_gradients(name: str) -> None:
    """The same on the way through autograd."""
    operands, options, error, message = BAD_CALLS[name]
    if not operands[0].dtype.is_floating_point and not operands[0].dtype.is_complex:
        operands = tuple(t.clone() for t in operands)  # integers cannot require a gradient
    else:
        operands = tuple(t.clone().requires_grad_() for t in operands)
    with pytest.raises(error, match=re.escape(message)):
        F.conv2d(*operands, **options)


@pytest.mark.parametrize("name", [name for name in BAD_CALLS if "values" not in name])
def test_bad_call_of_the_operator(name: str) -> None:
    operands, options, error, message = BAD_CALLS[name]
    options = {k: [v, v] if k != "groups" and isinstance(v, int) else v for k, v in options.items()}
    with pytest.raises(error, match=re.escape(message)):
        torch.ops.fastconv.conv2d(*operands, **options)


META_CALLS = [
    name for name in BAD_CALLS if not name.startswith(("dtype", "bias")) and "overflows" not in name
]


@pytest.mark.parametrize("name", META_CALLS)
def test_bad_call_on_meta_tensors(name: str) -> None:
    """Shape inference, and so torch.compile, refuses what the kernels would refuse."""
    operands, options, *_ = BAD_CALLS[name]
    with pytest.raises((ValueError, RuntimeError)):
        F.conv2d(*(t.to("meta") for t in operands), **options)


def test_named_padding() -> None:
    with pytest.raises(ValueError, match=r"^conv2d: expected padding 'same', 'valid' or .*'full'"):
        F.conv2d(x(), w(), padding="full")
    with pytest.raises(ValueError, match=r"^conv2d: expected stride 1 with padding 'same', got"):
        F.conv2d(x(), w(), padding="same", stride=(1, 2))
    with pytest.raises(ValueError, match=r"^conv2d: expected weight of shape"):
        F.conv2d(x(), w(8, 4, 3), padding="same")
    with pytest.raises(ValueError, match=r"^conv2d: expected input of shape"):
        F.conv2d(x(4, 6), w(8, 4, 2, 2), padding="same")


def test_devices_must_agree() -> None:
    with pytest.raises(RuntimeError, match="device"):
        F.conv2d(x(), w(device="meta"))
    with pytest.raises(RuntimeError, match="device"):
        F.conv2d(x(device="meta"), w())
    with pytest.raises(RuntimeError, match="device"):
        F.conv2d(x(), w(), torch.ones(8, device="meta"))


def test_not_tensors() -> None:
    for operands in [([[1.0]], w()), (x(), None), (None, w()), (x().numpy(), w()), (x(), w(), 3.0)]:
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            F.conv2d(*operands)
    for options in [{"stride": 1.5}, {"stride": "2"}, {"groups": "2"}, {"padding": None}]:
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            F.conv2d(x(), w(), **options)


def test_sparse_and_quantized_tensors_are_refused() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        F.conv2d(x().to_sparse(), w())
    quantized = torch.quantize_per_tensor(x(), 0.1, 0, torch.qint8)
    with pytest.raises((RuntimeError, NotImplementedError)):
        F.conv2d(quantized, w())


BAD_BACKWARD: dict[str, tuple[dict, type[Exception], str]] = {
    "grad-shape": ({"grad_output": torch.ones(2, 8, 4, 5)}, ValueError,
        "expected grad_output of shape [2, 8, 4, 4]"),
    "grad-rank": ({"grad_output": torch.ones(8, 4, 4)}, ValueError, "grad_output"),
    "grad-dtype": ({"grad_output": torch.ones(2, 8, 4, 4).double()}, (ValueError, RuntimeError),
        "Double"),
    "weight-rank": ({"weight": w(8, 4, 3)}, ValueError, "expected weight of shape"),
    "groups-0": ({"groups": 0}, ValueError, "expected groups"),
    "stride-0": ({"stride": [0, 1]}, ValueError, "expected stride"),
    "dtype": ({"weight": w().double()}, RuntimeError, "dtype"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BACKWARD)
def test_bad_backward_call(name: str) -> None:
    changes, error, message = BAD_BACKWARD[name]
    arguments = {
        "grad_output": torch.ones(2, 8, 4, 4),
        "input": x(),
        "weight": w(),
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "output_mask": [True, True, True],
    }
    torch.ops.fastconv._conv2d_backward(**arguments)
    with pytest.raises(error, match=re.escape(message)):
        torch.ops.fastconv._conv2d_backward(**{**arguments, **changes})


def test_no_memory_is_an_error_not_a_crash() -> None:
    """An output of 8 TB: the allocation fails, the process lives on."""
    with pytest.raises(RuntimeError, match=r"memory|allocate"):
        F.conv2d(torch.ones(1, 1, 1, 1).expand(2, 1, 1, 1), torch.ones(1, 1, 1, 1), padding=500_000)


def test_extreme_but_valid_sizes_return_quickly() -> None:
    """In a process of its own with a time limit, because what may go wrong is a hang or a crash."""
    program = """
import torch, fastconv.functional as F
big = 2**40
x = torch.arange(12.0).reshape(1, 1, 3, 4).requires_grad_()
w = torch.ones(2, 1, 1, 1, requires_grad=True)
for options in [{"stride": big}, {"stride": (1, big)}, {"stride": 2**63 - 1}, {"dilation": big},
                {"stride": 5000, "padding": 1}]:
    ours = F.conv2d(x, w, **options)
    theirs = torch.nn.functional.conv2d(x.double(), w.double(), **options)
    assert torch.equal(ours, theirs.float()), options
    ours = torch.autograd.grad(ours.sum(), [x, w])
    theirs = torch.autograd.grad(theirs.sum(), [x, w])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs)), options
print("all right")
"""
    done = run_python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all right"


@pytest.mark.parametrize(
    ("input_shape", "weight_shape"),
    [
        ((2, 0, 6, 6), (8, 0, 3, 3)),  # no input channels
        ((2, 4, 6, 6), (0, 4, 3, 3)),  # no output channels
        ((0, 4, 6, 6), (8, 4, 3, 3)),  # no images
        ((2, 4, 0, 6), (8, 4, 1, 1)),  # no rows
        ((2, 4, 0, 6), (8, 4, 3, 3)),
    ],
)
def test_empty_dimensions_do_as_torch_does(input_shape: tuple, weight_shape: tuple) -> None:
    """The same result or the same kind of refusal."""
    outcomes = []
    for conv2d in (F.conv2d, torch.nn.functional.conv2d):
        operands = [torch.ones(s, requires_grad=True) for s in (input_shape, weight_shape)]
        try:
            output = conv2d(*operands, padding=1)
            output.sum().backward()
            outcomes.append((output.shape, [t.grad for t in operands]))
        except (RuntimeError, ValueError) as error:
            outcomes.append(error)
    ours, theirs = outcomes
    if isinstance(theirs, Exception):
        # Where torch refuses an empty plane, a right answer (all zeros) is no worse.
        assert isinstance(ours, Exception) or ours[0].numel() == 0 or input_shape[2] == 0
    else:
        assert not isinstance(ours, Exception), ours
        assert ours[0] == theirs[0]
        for a, b in zip(ours[1], theirs[1], strict=True):
            assert torch.equal(a, b)
