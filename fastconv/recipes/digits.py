# SPDX-License-Identifier: MIT
"""The 1,797 real handwritten digits that ship inside scikit-learn, scaled to 28x28."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastconv.recipes.errors import require_packages

TEST_IMAGES = 360
VALIDATION_IMAGES = 180
_GREY_LEVELS = 16.0


def load_digits(size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Load the digits and scale them with bilinear interpolation.

    Args:
        size: side of the returned images in pixels.

    Returns:
        Images ``[1797, 1, size, size]`` float32 in [0, 1], ink is 1, and labels ``[1797]`` int64.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository (1998);
    scikit-learn holds its test part as 8x8 images of 17 grey levels.
    """
    require_packages("sklearn")
    from sklearn.datasets import load_digits as sklearn_load_digits

    bunch = sklearn_load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / _GREY_LEVELS
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    scaled = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return scaled, labels


def split_digits(
    labels: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the digits at random, each class in the same share, into 1257 / 180 / 360 images.

    The data carry no name of the writer, so a writer can be in more than one part: the test
    accuracy is that on new digits, not on new writers.

    Args:
        labels: ``[1797]`` int64.
        seed: seed of the split; the same seed gives the same split on every machine.

    Returns:
        Indices (int64) of the training, validation and test images.
    """
    require_packages("sklearn")
    from sklearn.model_selection import train_test_split

    targets = labels.numpy()
    rest, test = train_test_split(
        range(len(targets)), test_size=TEST_IMAGES, random_state=seed, stratify=targets
    )
    train, validation = train_test_split(
        rest, test_size=VALIDATION_IMAGES, random_state=seed, stratify=targets[rest]
    )
    return torch.tensor(train), torch.tensor(validation), torch.tensor(test)
