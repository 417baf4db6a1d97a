# SPDX-License-Identifier: MIT
"""The recipes' data: digits, batches, and the reader of the MNIST files."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastconv.recipes import UserError
from fastconv.recipes.data import Samples, ShiftedBatches, ShuffledBatches, load_image_data
from fastconv.recipes.digits import load_digits, split_digits
from fastconv.recipes.mnist import load_mnist


def test_digits_are_scaled_and_split() -> None:
    images, labels = load_digits()
    assert images.shape == (1797, 1, 28, 28)
    assert float(images.min()) == 0.0
    assert float(images.max()) == 1.0
    parts = split_digits(labels, 0)
    assert [len(part) for part in parts] == [1257, 180, 360]
    assert torch.cat(parts).unique().numel() == 1797
    for part in parts:
        assert int(labels[part].bincount().min()) >= 0.09 * len(part)
    assert all(map(torch.equal, parts, split_digits(labels, 0)))
    assert not torch.equal(parts[0], split_digits(labels, 1)[0])


def test_image_data_are_standardised_by_the_training_part() -> None:
    data = load_image_data("digits")
    assert float(data.train.inputs.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(data.train.inputs.std()) == pytest.approx(1.0, abs=1e-5)
    assert data.background == pytest.approx(float(data.test.inputs.min()), abs=1e-6)


def test_shifted_batches_give_every_image_once_moved_within_bounds() -> None:
    samples = Samples(torch.randn(11, 2, 6, 5), torch.arange(11))
    batches = ShiftedBatches(samples, batch_size=4, shift=2, background=-7.0)
    padded = F.pad(samples.inputs, (2, 2, 2, 2), value=-7.0)
    parts = list(batches.epoch(torch.Generator().manual_seed(0)))
    assert [len(targets) for _, targets in parts] == [4, 4, 3]
    seen = torch.cat([targets for _, targets in parts])
    assert torch.equal(seen.sort().values, samples.targets)
    moves = set()
    for inputs, targets in parts:
        for image, index in zip(inputs, targets, strict=True):
            found = [
                (down, right)
                for down in range(5)
                for right in range(5)
                if torch.equal(image, padded[index, :, down : down + 6, right : right + 5])
            ]
            assert len(found) == 1
            moves.add(found[0])
    assert len(moves) > 4


def test_without_a_shift_images_stay_as_they_are() -> None:
    samples = Samples(torch.randn(7, 1, 4, 4), torch.arange(7))
    shifted = ShiftedBatches(samples, 3, 0, 0.0).epoch(torch.Generator().manual_seed(1))
    shuffled = ShuffledBatches(samples, 3).epoch(torch.Generator().manual_seed(1))
    for (left, _), (right, _) in zip(shifted, shuffled, strict=True):
        assert torch.equal(left, right)


def idx(values: np.ndarray, magic: int) -> bytes:
    return struct.pack(f">I{values.ndim}I", magic, *values.shape) + values.tobytes()


def write_mnist(folder: Path, *, train: int = 60, test: int = 20, zipped: bool = False) -> None:
    numbers = np.random.default_rng(0)
    suffix = ".gz" if zipped else ""
    for part, count in (("train", train), ("t10k", test)):
        images = numbers.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, data in (
            (f"{part}-images-idx3-ubyte", idx(images, 2051)),
            (f"{part}-labels-idx1-ubyte", idx(labels, 2049)),
        ):
            content = gzip.compress(data) if zipped else data
            (folder / (name + suffix)).write_bytes(content)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_files_are_read(tmp_path: Path, zipped: bool) -> None:
    write_mnist(tmp_path, zipped=zipped)
    (images, labels), (test_images, test_labels) = load_mnist(tmp_path)
    expected = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    assert torch.equal(images, torch.tensor(expected))
    assert torch.equal(labels, torch.arange(60) % 10)
    assert test_images.shape == (20, 28, 28)
    assert test_labels.dtype == torch.int64


def test_mnist_is_found_where_torchvision_puts_it_and_with_dots(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_mnist(raw)
    (raw / "train-images-idx3-ubyte").rename(raw / "train-images.idx3-ubyte")
    assert len(load_mnist(tmp_path)[0][0]) == 60


def test_mnist_is_split_into_train_and_validation(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = load_image_data("mnist", folder=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (55, 5, 20)
    assert float(data.train.inputs.std()) == pytest.approx(1.0, abs=1e-4)


def _cut(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")


def _cut_header(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:10])


def _empty(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(b"")


def _swap_kinds(folder: Path) -> None:
    images, labels = (folder / f"train-{n}-ubyte" for n in ("images-idx3", "labels-idx1"))
    images_bytes = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    labels.write_bytes(images_bytes)


def _swap_labels(folder: Path) -> None:
    train, test = (folder / f"{n}-labels-idx1-ubyte" for n in ("train", "t10k"))
    train_bytes = train.read_bytes()
    train.write_bytes(test.read_bytes())
    test.write_bytes(train_bytes)


def _wrong_label(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte"
    data = bytearray(path.read_bytes())
    data[8 + 5] = 10
    path.write_bytes(data)


def _remove(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").unlink()


def _other_file(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(b"<html>404 not found</html>")


def _other_size(folder: Path) -> None:
    images = np.zeros((60, 32, 32), dtype=np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(idx(images, 2051))


def _cut_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes())[:-200])


def _damage_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    data = bytearray(gzip.compress(path.read_bytes()))
    data[-6] ^= 0xFF
    path.write_bytes(data)


def _no_images(folder: Path) -> None:
    write_mnist(folder, test=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "train-images-idx3-ubyte: truncated, expected 47056 bytes for 60 images"),
        (_lengthen, "t10k-labels-idx1-ubyte: too long, expected 28 bytes for 20 labels, got 29"),
        (_cut_header, "t10k-images-idx3-ubyte: truncated, expected a header of 16 bytes"),
        (_empty, "train-labels-idx1-ubyte: truncated, expected an IDX header, got 0 bytes"),
        (_swap_kinds, r"train-images-idx3-ubyte: .* 2051 \(images\), got 2049; .* file of labels"),
        (_swap_labels, "train-labels-idx1-ubyte: expected 60 labels, .* got 20"),
        (_wrong_label, "t10k-labels-idx1-ubyte: expected labels 0 to 9, got 10 at index 5"),
        (_remove, "expected the file t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz"),
        (_other_file, "train-images-idx3-ubyte: expected magic number 2051"),
        (_other_size, "train-images-idx3-ubyte: expected images of 28x28 pixels, got 32x32"),
        (_cut_gzip, "train-images-idx3-ubyte: truncated, the gzip stream"),
        (_damage_gzip, "train-images-idx3-ubyte: damaged gzip stream"),
        (_no_images, "t10k-images-idx3-ubyte: expected at least one of images"),
    ],
)
def test_a_bad_mnist_file_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    write_mnist(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_mnist(tmp_path)


def test_download_without_torchvision_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match="--download needs torchvision"):
        load_mnist(tmp_path, download=True)
