# SPDX-License-Identifier: MIT
"""Image data held in memory as tensors, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F

from fastconv.recipes.digits import load_digits, split_digits
from fastconv.recipes.errors import UserError
from fastconv.recipes.mnist import load_mnist

DATASETS = ("digits", "mnist")


@dataclass(frozen=True)
class Samples:
    """Inputs ``[N, ...]`` and the target of each ``[N]`` or ``[N, ...]``."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class ImageData:
    """Images ``[N, 1, 28, 28]`` float32, labels ``[N]`` int64, in three parts.

    The images are standardised: ``(grey - mean) / std`` with grey in [0, 1] and the mean and
    standard deviation of the training part.
    """

    name: str
    train: Samples
    validation: Samples
    test: Samples
    mean: float
    std: float

    @property
    def background(self) -> float:
        """The standardised value of an empty pixel."""
        return -self.mean / self.std

    def describe(self) -> dict[str, object]:
        """What a checkpoint keeps: enough to prepare new images and to know the data again."""
        return {
            "name": self.name,
            "mean": self.mean,
            "std": self.std,
            "sizes": [len(self.train), len(self.validation), len(self.test)],
        }


class Batches(Protocol):
    """A source of training batches."""

    def __len__(self) -> int:
        """Number of samples in one epoch."""

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of one epoch; all that is random comes from ``generator``."""


class ShuffledBatches:
    """The samples in a new random order each epoch; the last batch may be smaller."""

    def __init__(self, samples: Samples, batch_size: int) -> None:
        self._samples = samples
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._samples)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``(inputs, targets)`` batch by batch."""
        order = torch.randperm(len(self), generator=generator)
        for picked in order.split(self._batch_size):
            yield self._samples.inputs[picked], self._samples.targets[picked]


class ShiftedBatches:
    """As :class:`ShuffledBatches`, each image moved by up to ``shift`` pixels in both directions.

    The images are padded once; a batch is one gather from the view of all their windows, so that
    the shift costs no more than the shuffle.

    Args:
        samples: images ``[N, C, H, W]`` and their labels.
        batch_size: images in a batch.
        shift: largest move in pixels, at least 0.
        background: value that fills the pixels moved in.
    """

    def __init__(self, samples: Samples, batch_size: int, shift: int, background: float) -> None:
        height, width = samples.inputs.shape[-2:]
        padded = F.pad(samples.inputs, (shift, shift, shift, shift), value=background)
        self._windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        self._targets = samples.targets
        self._batch_size = batch_size
        self._positions = 2 * shift + 1

    def __len__(self) -> int:
        return len(self._targets)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``(images, labels)`` batch by batch."""
        order = torch.randperm(len(self), generator=generator)
        moves = torch.randint(self._positions, (2, len(self)), generator=generator)
        batches = zip(
            order.split(self._batch_size), moves.split(self._batch_size, dim=1), strict=True
        )
        for picked, (down, right) in batches:
            yield self._windows[picked, :, down, right], self._targets[picked]


def load_image_data(
    name: str, *, folder: Path | None = None, download: bool = False, split_seed: int = 0
) -> ImageData:
    """Load one of :data:`DATASETS`, split it and standardise it.

    ``"digits"`` splits into 1257 / 180 / 360 images. ``"mnist"`` keeps its own test set and takes
    one in twelve of the training images for validation (5,000 of 60,000), picked by ``split_seed``.

    Raises:
        UserError: for an unknown name, a missing folder or a damaged file.
    """
    if name == "digits":
        images, labels = load_digits()
        train, validation, test = (
            Samples(images[part], labels[part]) for part in split_digits(labels, split_seed)
        )
        return _standardise(name, train, validation, test)
    if name != "mnist":
        raise UserError(f"expected --data one of {', '.join(DATASETS)}, got {name!r}")
    if folder is None:
        raise UserError("--data mnist needs --data-dir DIR, the directory of the four MNIST files")
    rest, test = (
        Samples(images.unsqueeze(1).float() / 255.0, labels)
        for images, labels in load_mnist(folder, download=download)
    )
    if len(rest) < 2:
        raise UserError(f"{folder}: expected at least 2 training images, got {len(rest)}")
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(split_seed))
    held_out = max(1, len(rest) // 12)
    validation, train = (
        Samples(rest.inputs[part], rest.targets[part])
        for part in (order[:held_out], order[held_out:])
    )
    return _standardise(name, train, validation, test)


def _standardise(name: str, train: Samples, validation: Samples, test: Samples) -> ImageData:
    mean, std = float(train.inputs.mean()), float(train.inputs.std())
    if not std > 0.0:
        raise UserError(f"{name}: expected training images that differ, got one single grey value")

    def scaled(samples: Samples) -> Samples:
        return Samples((samples.inputs - mean) / std, samples.targets)

    return ImageData(name, scaled(train), scaled(validation), scaled(test), mean, std)
