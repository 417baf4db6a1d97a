# SPDX-License-Identifier: MIT
"""Networks on an LSTM: a forecaster of time series and a model of text, character by character."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import nn as torch_nn

from fastconv import nn as fast_nn

_BACKENDS: dict[str, type[torch_nn.Module]] = {
    "fastconv": fast_nn.LSTM,
    "torch": torch_nn.LSTM,
}


def _check(model: str, dropout: object, backend: str, **counts: object) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{model}: expected {name} a positive integer, got {value!r}")
    if not isinstance(dropout, (int, float)) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"{model}: expected dropout in [0, 1), got {dropout!r}")
    if backend not in _BACKENDS:
        raise ValueError(
            f"{model}: expected backend one of {', '.join(_BACKENDS)}, got {backend!r}"
        )


def _layers(backend: str, sizes: tuple[int, int, int], dropout: float, **more: bool) -> Any:
    """LSTM layers of (input size, hidden size, number), with dropout where there is a between."""
    return _BACKENDS[backend](*sizes, dropout=dropout if sizes[2] > 1 else 0.0, **more)


class LSTMForecaster(torch_nn.Module):
    """Reads a window of a time series and forecasts the steps after it.

    ``lstm`` reads the window; ``head``, a linear layer on its last hidden state, gives all steps of
    the horizon at once. Both backends have the same ``state_dict`` keys, and the same seed gives
    the same initial weights.

    Args:
        input_size: values per step of the window, at least 1.
        hidden_size: units of each layer.
        num_layers: LSTM layers.
        horizon: steps that are forecast.
        dropout: between the layers in training, in [0, 1).
        backend: ``"fastconv"`` or ``"torch"``: whose LSTM.

    Shapes:
        input ``[B, window, input_size]``, output ``[B, horizon]``.

    Raises:
        ValueError: for an argument outside these ranges, or an input of another shape.
    """

    def __init__(
        self,
        input_size: int = 1,
        hidden_size: int = 50,
        num_layers: int = 1,
        horizon: int = 1,
        dropout: float = 0.0,
        backend: str = "fastconv",
    ) -> None:
        _check(
            "LSTMForecaster", dropout, backend, input_size=input_size, hidden_size=hidden_size,
            num_layers=num_layers, horizon=horizon,
        )  # fmt: skip
        super().__init__()
        self.input_size = input_size
        sizes = (input_size, hidden_size, num_layers)
        self.lstm = _layers(backend, sizes, dropout, batch_first=True)
        self.head = torch_nn.Linear(hidden_size, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """Return the forecasts of a batch of windows; shapes as in the class description."""
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise ValueError(
                f"LSTMForecaster: expected input of shape [B, window, {self.input_size}], got "
                f"{list(x.shape)}"
            )
        _, (h_n, _) = self.lstm(x)
        forecast: Tensor = self.head(h_n[-1])
        return forecast


class CharLSTM(torch_nn.Module):
    """Predicts the next character of a text from those before it.

    ``embedding``, then ``lstm``, then ``head``, a linear layer to one score per character. Both
    backends have the same ``state_dict`` keys, and the same seed gives the same initial weights.

    Args:
        vocabulary: number of different characters.
        embedding_size: values a character becomes.
        hidden_size: units of each layer.
        num_layers: LSTM layers.
        dropout: between the layers and before the head in training, in [0, 1).
        backend: ``"fastconv"`` or ``"torch"``: whose LSTM.

    Shapes:
        input: int64 ``[T, B]`` numbers of characters; output: scores before the softmax
        ``[T, B, vocabulary]``, and the state to go on from.

    Raises:
        ValueError: for an argument outside these ranges, or an input of another shape.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding_size: int = 64,
        hidden_size: int = 256,
        num_layers: int = 2,
        dropout: float = 0.0,
        backend: str = "fastconv",
    ) -> None:
        _check(
            "CharLSTM", dropout, backend, vocabulary=vocabulary, embedding_size=embedding_size,
            hidden_size=hidden_size, num_layers=num_layers,
        )  # fmt: skip
        super().__init__()
        self.embedding = torch_nn.Embedding(vocabulary, embedding_size)
        self.lstm = _layers(backend, (embedding_size, hidden_size, num_layers), dropout)
        self.dropout = torch_nn.Dropout(dropout)
        self.head = torch_nn.Linear(hidden_size, vocabulary)

    def forward(
        self, characters: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the scores of every next character, and the state after the last one."""
        if characters.dim() != 2 or characters.dtype != torch.int64:
            raise ValueError(
                f"CharLSTM: expected int64 input of shape [T, B], got {characters.dtype} "
                f"{list(characters.shape)}"
            )
        output, state = self.lstm(self.embedding(characters), state)
        return self.head(self.dropout(output)), state
