# SPDX-License-Identifier: MIT
"""Reader of the four MNIST files in IDX format, gzipped or not, with every field checked.

IDX holds big-endian 32-bit integers: the magic number (2051 images, 2049 labels), then the size of
each dimension, then one byte per value. Fashion-MNIST and KMNIST come in the same files.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch

from fastconv.recipes.errors import UserError

IMAGE_MAGIC = 2051
LABEL_MAGIC = 2049
CLASSES = 10
SIDE = 28

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MAGIC_NAMES = {IMAGE_MAGIC: "images", LABEL_MAGIC: "labels"}
_GZIP_MAGIC = b"\x1f\x8b"
_OFFICIAL_COUNTS = (60000, 10000)


def load_mnist(
    folder: Path, *, download: bool = False
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Read the training and the test set.

    Args:
        folder: directory with the four files, or with torchvision's ``MNIST/raw`` below it. A file
            may end in ``.gz`` and may be spelled with a dot before ``idx``.
        download: let torchvision fetch the files into ``folder`` first where they are missing.

    Returns:
        ``(train_images, train_labels), (test_images, test_labels)``; images ``[N, 28, 28]`` uint8,
        labels ``[N]`` int64 in 0 to 9.

    Raises:
        UserError: naming the file that is missing, truncated, swapped or otherwise wrong.
    """
    if download:
        _download(folder)
    if not folder.is_dir():
        raise UserError(f"expected --data-dir an existing directory, got {str(folder)!r}")
    train, test = (_read_pair(folder, *_FILES[part]) for part in ("train", "test"))
    if (len(test[1]), len(train[1])) == _OFFICIAL_COUNTS:
        raise UserError(
            f"{folder}: the train files hold 10000 images and the t10k files 60000; "
            "expected the reverse, the files are swapped"
        )
    return train, test


def _download(folder: Path) -> None:
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise UserError(
            "--download needs torchvision, which cannot be imported; run: pip install torchvision, "
            f"or put the four MNIST files into {folder}"
        ) from error
    try:
        MNIST(root=str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--download: torchvision could not fetch MNIST: {error}") from error


def _read_pair(folder: Path, image_name: str, label_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    image_path, label_path = _find(folder, image_name), _find(folder, label_name)
    images = _read_idx(image_path, IMAGE_MAGIC)
    labels = _read_idx(label_path, LABEL_MAGIC).long()
    if images.shape[1:] != (SIDE, SIDE):
        height, width = images.shape[1:]
        raise UserError(f"{image_path}: expected images of 28x28 pixels, got {height}x{width}")
    if len(images) != len(labels):
        raise UserError(
            f"{label_path}: expected {len(images)} labels, one for each image of "
            f"{image_path.name}, got {len(labels)}"
        )
    wrong = torch.nonzero(labels >= CLASSES)
    if len(wrong):
        index = int(wrong[0])
        raise UserError(
            f"{label_path}: expected labels 0 to 9, got {int(labels[index])} at index {index}"
        )
    return images, labels


def _find(folder: Path, name: str) -> Path:
    spellings = [name, name.replace("-idx", ".idx")]
    for parent in (folder, folder / "MNIST" / "raw"):
        for spelling in spellings:
            for suffix in ("", ".gz"):
                path = parent / (spelling + suffix)
                if path.is_file():
                    return path
    raise UserError(
        f"{folder}: expected the file {name} or {name}.gz, found neither "
        "(--download fetches the files when torchvision is installed)"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
    except EOFError as error:
        raise UserError(f"{path}: truncated, the gzip stream ends too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip stream: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_idx(path: Path, magic: int) -> torch.Tensor:
    """Read one file; ``magic`` says which kind is expected and with it the number of dimensions."""
    data = _read_bytes(path)
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    kind = _MAGIC_NAMES[magic]
    if len(data) < 4:
        raise UserError(f"{path}: truncated, expected an IDX header, got {len(data)} bytes")
    (found,) = struct.unpack_from(">I", data)
    if found != magic:
        swapped = f"; this is a file of {_MAGIC_NAMES[found]}" if found in _MAGIC_NAMES else ""
        raise UserError(f"{path}: expected magic number {magic} ({kind}), got {found}{swapped}")
    if len(data) < header:
        raise UserError(
            f"{path}: truncated, expected a header of {header} bytes, got {len(data)} bytes"
        )
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    expected = header + math.prod(shape)
    if len(data) != expected:
        fault = "truncated" if len(data) < expected else "too long"
        raise UserError(
            f"{path}: {fault}, expected {expected} bytes for {shape[0]} {kind}, got {len(data)}"
        )
    if shape[0] == 0:
        raise UserError(f"{path}: expected at least one of {kind}, got none")
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header)
    return values.reshape(shape)
