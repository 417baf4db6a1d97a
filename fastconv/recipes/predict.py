# SPDX-License-Identifier: MIT
"""The recipe ``predict lenet5``: classify image files with a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastconv.models.lenet import IMAGE_SIZE
from fastconv.recipes.checkpoint import load_checkpoint
from fastconv.recipes.errors import UserError, require_packages
from fastconv.recipes.lenet import RECIPE, build_model
from fastconv.recipes.lenet_config import LeNetConfig

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    GreyImage = NDArray[numpy.float32]

_WHITE = 255.0
_MIDDLE_GREY = _WHITE / 2
_FROM_16_BIT = 257.0
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Prediction:
    """One image file, the most probable class, and the probability of every class."""

    path: Path
    label: int
    probabilities: tuple[float, ...]


def read_digit(path: Path, size: int = IMAGE_SIZE) -> torch.Tensor:
    """Read an image file the way the network was trained: light ink on a dark background.

    The picture is turned upright as its EXIF data say and made grey; transparent parts become
    background. It is padded to a square with the background, the median grey of its border, resized
    to ``size`` x ``size``, and inverted when that background is light. Nothing is cropped: as in
    the training images, the digit should fill the picture.

    Returns:
        ``[1, size, size]`` float32 in [0, 1].

    Raises:
        UserError: when the file is missing, no image, or of one single grey value.
    """
    require_packages("PIL", "numpy")
    import numpy
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise UserError(f"{path}: expected an image file, found none")
    try:
        with Image.open(path) as file:
            grey = _to_grey(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: expected an image file, got something else") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image cannot be read: {error}") from error
    if grey.max() == grey.min():
        raise UserError(f"{path}: expected an image of a digit, got one single grey value")
    background = _border_median(grey)
    square = Image.fromarray(_pad_to_square(grey, background))
    scaled = numpy.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
    pixels = torch.tensor(scaled).unsqueeze(0) / _WHITE
    if background > _MIDDLE_GREY:
        pixels = 1.0 - pixels
    return pixels.clamp(0.0, 1.0)


def _to_grey(image: PILImage) -> GreyImage:
    """Grey values ``[H, W]`` from 0 (black) to 255 (white).

    Transparent parts become black behind ink that is light on average, white behind dark ink.
    """
    import numpy

    if image.mode in _DEEP_MODES:
        deep = numpy.asarray(image, dtype=numpy.float32)
        scale = _FROM_16_BIT if deep.max() > _WHITE else 1.0
        return (deep / numpy.float32(scale)).clip(0.0, _WHITE)
    colour = image.convert("RGBA")
    grey = numpy.asarray(colour.convert("RGB").convert("L"), dtype=numpy.float32)
    opacity = numpy.asarray(colour.getchannel("A"), dtype=numpy.float32) / numpy.float32(_WHITE)
    covered = float(opacity.sum())
    light_ink = covered > 0.0 and float((grey * opacity).sum()) / covered > _MIDDLE_GREY
    behind = numpy.float32(0.0 if light_ink else _WHITE)
    blended: GreyImage = grey * opacity + behind * (1 - opacity)
    return blended


def _border_median(grey: GreyImage) -> float:
    import numpy

    border = numpy.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    return float(numpy.median(border))


def _pad_to_square(grey: GreyImage, background: float) -> GreyImage:
    import numpy

    height, width = grey.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = numpy.full((side, side), background, dtype=numpy.float32)
    square[top : top + height, left : left + width] = grey
    return square


def predict_lenet5(
    checkpoint: Path, images: Sequence[Path], *, backend: str | None = None
) -> list[Prediction]:
    """Classify image files.

    Args:
        checkpoint: ``best.pt`` or ``last.pt`` of a run.
        images: image files in any format that pillow reads.
        backend: ``"fastconv"`` or ``"torch"``; None takes that of the run.

    Raises:
        UserError: for a checkpoint or an image that cannot be used.
    """
    content = load_checkpoint(checkpoint, RECIPE)
    try:
        config = LeNetConfig.from_dict(content["config"])
        if backend is not None:
            config = replace(config, backend=backend)
        model = build_model(config)
        model.load_state_dict(content["trainer"]["model"])
        mean, std = float(content["data"]["mean"]), float(content["data"]["std"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{checkpoint}: the checkpoint is incomplete or inconsistent") from error
    inputs = (torch.stack([read_digit(path) for path in images]) - mean) / std
    model.eval()
    with torch.no_grad():
        probabilities = model(inputs).softmax(1)
    return [
        Prediction(path, int(row.argmax()), tuple(row.tolist()))
        for path, row in zip(images, probabilities, strict=True)
    ]
