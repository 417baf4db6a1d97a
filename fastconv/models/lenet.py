# SPDX-License-Identifier: MIT
"""LeNet-5, the convolutional network of LeCun, Bottou, Bengio and Haffner (1998)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn as torch_nn

from fastconv import nn as fast_nn
from fastconv.functional import conv_block2d, mlp

_ACTIVATIONS: dict[str, Callable[[], torch_nn.Module]] = {
    "relu": torch_nn.ReLU,
    "tanh": torch_nn.Tanh,
    "sigmoid": torch_nn.Sigmoid,
    "leaky_relu": torch_nn.LeakyReLU,
}
ACTIVATIONS = tuple(_ACTIVATIONS)
POOLS = ("max", "avg")
BACKENDS = ("fastconv", "torch")
IMAGE_SIZE = 28
_CLASSIFIERS = {
    name: (
        ("fc1", torch_nn.Linear),
        ("act3", layer),
        ("drop1", torch_nn.Dropout),
        ("fc2", torch_nn.Linear),
        ("act4", layer),
        ("drop2", torch_nn.Dropout),
        ("fc3", torch_nn.Linear),
    )
    for name, layer in _ACTIVATIONS.items()
}


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"LeNet5: expected {name} one of {', '.join(choices)}, got {value!r}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"LeNet5: expected {name} a positive integer, got {value!r}")


def _has_hooks(module: torch_nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _conv_block(
    backend: str, channels: tuple[int, int], padding: int, activation: str, pool: str
) -> tuple[torch_nn.Conv2d, torch_nn.Module]:
    """A 5x5 convolution layer, and what follows it up to the pooling (nothing when it is fused)."""
    if backend == "fastconv":
        block = fast_nn.ConvBlock2d(*channels, 5, padding=padding, activation=activation, pool=pool)
        return block, torch_nn.Identity()
    pool_type = torch_nn.MaxPool2d if pool == "max" else torch_nn.AvgPool2d
    after = torch_nn.Sequential(_ACTIVATIONS[activation](), pool_type(2))
    return torch_nn.Conv2d(*channels, 5, padding=padding), after


class LeNet5(torch_nn.Module):
    """LeNet-5 for 28x28 images.

    ``conv1`` (6 maps, 5x5, padding 2), 2x2 pooling, ``conv2`` (16 maps, 5x5), 2x2 pooling, then
    ``fc1`` (400 to 120), ``fc2`` (120 to 84) and ``fc3`` (84 to ``num_classes``). With ten classes
    and one input channel it has 61,706 parameters. ``activation="tanh", pool="avg"`` is the closest
    to the network of the paper; the default (ReLU, max pooling) trains faster.

    Both backends have the same ``state_dict`` keys, and the same seed gives the same initial
    weights.

    Args:
        num_classes: number of output scores, at least 1.
        in_channels: channels of the input images, at least 1.
        activation: ``"relu"``, ``"tanh"``, ``"sigmoid"`` or ``"leaky_relu"`` (slope 0.01).
        pool: ``"max"`` or ``"avg"``, window 2x2, stride 2.
        dropout: probability of zeroing an output of ``fc1`` and ``fc2`` in training, in [0, 1).
        backend: ``"fastconv"`` for fastconv's layers, ``"torch"`` for the stock ones.

    Shapes:
        input ``[N, in_channels, 28, 28]`` (or ``[in_channels, 28, 28]``), output scores before the
        softmax ``[N, num_classes]`` (or ``[num_classes]``).

    Raises:
        ValueError: for an argument outside the ranges above, or an input of another shape.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        activation: str = "relu",
        pool: str = "max",
        dropout: float = 0.0,
        backend: str = "fastconv",
    ) -> None:
        _check_count("num_classes", num_classes)
        _check_count("in_channels", in_channels)
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("pool", pool, POOLS)
        _check_choice("backend", backend, BACKENDS)
        if not isinstance(dropout, (int, float)) or not 0.0 <= dropout < 1.0:
            raise ValueError(f"LeNet5: expected dropout in [0, 1), got {dropout!r}")
        super().__init__()
        activation_type = _ACTIVATIONS[activation]
        self.in_channels = in_channels
        self.activation = activation
        self.backend = backend
        self.conv1, self.pool1 = _conv_block(backend, (in_channels, 6), 2, activation, pool)
        self.conv2, self.pool2 = _conv_block(backend, (6, 16), 0, activation, pool)
        self.fc1 = torch_nn.Linear(400, 120)
        self.act3 = activation_type()
        self.drop1 = torch_nn.Dropout(dropout)
        self.fc2 = torch_nn.Linear(120, 84)
        self.act4 = activation_type()
        self.drop2 = torch_nn.Dropout(dropout)
        self.fc3 = torch_nn.Linear(84, num_classes)

    def _classifier(self) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
        """Weights and biases of the layers behind the convolutions, which then run as one operator.

        None where they have to run one by one: with dropout in between, with hooks, or where a
        layer is no longer the one that this class made.
        """
        # Straight from the dictionaries: Module.__getattr__ takes half a microsecond for each.
        layers: dict[str, Any] = self._modules
        if self.backend != "fastconv":
            return None
        weights: list[torch.Tensor] = []
        biases: list[torch.Tensor] = []
        for name, layer_type in _CLASSIFIERS[self.activation]:
            layer: Any = layers[name]
            if type(layer) is not layer_type or _has_hooks(layer):
                return None
            if layer_type is torch_nn.Linear:
                own = layer._parameters
                weight, bias = own.get("weight"), own.get("bias")
                if weight is None or bias is None:
                    return None
                weights.append(weight)
                biases.append(bias)
            elif layer_type is torch_nn.Dropout and layer.training and layer.p:
                return None
        return weights, biases

    def feature_maps(self, x: torch.Tensor) -> torch.Tensor:
        """Return the maps ``[N, 6, 28, 28]`` of ``conv1`` after the activation, before pooling."""
        return conv_block2d(
            x, self.conv1.weight, self.conv1.bias, padding=2, activation=self.activation
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the class scores of a batch of images; shapes as in the class description."""
        if x.dim() not in (3, 4) or x.shape[-3:] != (self.in_channels, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"LeNet5: expected input of shape [N, {self.in_channels}, {IMAGE_SIZE}, "
                f"{IMAGE_SIZE}], got {list(x.shape)}"
            )
        layers: dict[str, Any] = self._modules
        for name in ("conv1", "pool1", "conv2", "pool2"):
            x = layers[name](x)
        x = torch.flatten(x, -3)
        classifier = self._classifier()
        if classifier is not None:
            return mlp(x, *classifier, activation=self.activation)
        x = self.drop1(self.act3(self.fc1(x)))
        x = self.drop2(self.act4(self.fc2(x)))
        scores: torch.Tensor = self.fc3(x)
        return scores
