# SPDX-License-Identifier: MIT
"""LSTMForecaster and CharLSTM: shapes, equality of backends, errors."""

from __future__ import annotations

import pytest
import torch

from fastconv.models import CharLSTM, LSTMForecaster


def test_forecaster() -> None:
    models = []
    for backend in ("fastconv", "torch"):
        torch.manual_seed(0)
        models.append(LSTMForecaster(2, 12, 2, horizon=3, backend=backend))
    x = torch.randn(4, 9, 2)
    assert models[0](x).shape == (4, 3)
    torch.testing.assert_close(models[0](x), models[1](x))
    models[0].load_state_dict(models[1].state_dict())


def test_char_model_carries_its_state() -> None:
    models = []
    for backend in ("fastconv", "torch"):
        torch.manual_seed(0)
        models.append(CharLSTM(11, 6, 20, 2, backend=backend))
    text = torch.randint(11, (8, 3))
    scores, state = models[0](text)
    assert scores.shape == (8, 3, 11)
    torch.testing.assert_close(scores, models[1](text)[0])
    first, between = models[0](text[:5])
    second, last = models[0](text[5:], between)
    torch.testing.assert_close(torch.cat([first, second]), scores)
    torch.testing.assert_close(last[0], state[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: LSTMForecaster(0),
            "LSTMForecaster: expected input_size a positive",
        ),
        (lambda: LSTMForecaster(horizon=True), "expected horizon a positive integer"),
        (lambda: LSTMForecaster(dropout=1.0), r"expected dropout in \[0, 1\)"),
        (lambda: LSTMForecaster(backend="x"), "expected backend one of fastconv, torch, got 'x'"),
        (lambda: CharLSTM(5, hidden_size=-1), "CharLSTM: expected hidden_size a positive integer"),
        (lambda: LSTMForecaster()(torch.zeros(3, 4)), r"input of shape \[B, window, 1\]"),
        (lambda: CharLSTM(5)(torch.zeros(3, 4)), r"int64 input of shape \[T, B\]"),
    ],
)
def test_bad_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
