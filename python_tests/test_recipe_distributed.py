# SPDX-License-Identifier: MIT
"""`torchrun -m fastconv train lenet5`: two processes train as one does, and one of them writes."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastconv.recipes.distributed import Processes, mean_of_share

# 1257 images: the last batch has one, which leaves the second process without any.
SMOOTH = ["--activation", "tanh", "--pool", "avg", "--batch-size", "157", "--seed", "3"]


def run(tmp_path: Path, processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    """`fastconv train ...` in one process, or in several under torchrun, one thread each."""
    launcher = []
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}",
                    "--master-addr=127.0.0.1", f"--master-port={port}"]  # fmt: skip
    return subprocess.run(
        [sys.executable, *launcher, "-m", "fastconv", "train", *options],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint, weights_only=True)["trainer"]["model"]


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_same_run(one: Path, two: Path) -> None:
    """Weights and metrics agree but for what a few epochs make of another order of summation."""
    ours, theirs = weights(two / "last.pt"), weights(one / "last.pt")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= 1e-3 * tensor.abs().max(), name
    for row, wanted in zip(history(two), history(one), strict=True):
        for key in ("epoch", "lr", "train_loss", "val_loss"):
            assert row[key] == pytest.approx(wanted[key], rel=1e-4), key
        for key in ("train_accuracy", "val_accuracy"):
            assert row[key] == pytest.approx(wanted[key], abs=2 / 180), key


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    whole = run(tmp_path, 1, "lenet5", *SMOOTH, "--epochs", "3", "--out", "one")
    assert whole.returncode == 0, whole.stderr
    cut = run(tmp_path, 2, "lenet5", *SMOOTH, "--epochs", "2", "--out", "two")
    assert cut.returncode == 0, cut.stderr
    assert cut.stdout.count("test accuracy") == 1, "the first process alone prints"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert len(history(tmp_path / "two")) == 2

    resumed = run(tmp_path, 2, "lenet5", "--resume", "two/last.pt", "--epochs", "3")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
    found, wanted = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("two", "one")
    )
    assert abs(found["correct"] - wanted["correct"]) <= 2

    alone = run(tmp_path, 1, "lenet5", "--resume", "two/last.pt", "--epochs", "4", "--out", "on")
    assert alone.returncode == 0, alone.stderr
    assert len(history(tmp_path / "on")) == 4


def test_other_recipes_refuse_torchrun(tmp_path: Path) -> None:
    for recipe in ("forecast", "text"):
        done = run(tmp_path, 2, recipe, "--epochs", "1")
        assert done.returncode != 0
        assert f"train {recipe} runs in one process, expected no torchrun, got 2" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_gradients_of_shares_average_to_the_gradient_of_the_batch() -> None:
    inputs, targets = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def gradient(processes: Processes) -> Tensor:
        scores = processes.share(inputs) @ weight
        loss = torch.nn.functional.cross_entropy(scores, processes.share(targets))
        objective = mean_of_share(loss, scores, len(targets), processes)
        return torch.autograd.grad(objective, weight)[0]

    wanted = gradient(Processes())
    for size in (2, 3, 8):  # of eight, one has no sample
        mean = sum(gradient(Processes(rank, size)) for rank in range(size)) / size
        torch.testing.assert_close(mean, wanted)
    # Negative control: without the weights, processes with fewer samples would count for more.
    plain = sum(
        torch.autograd.grad(
            torch.nn.functional.cross_entropy(inputs[rank::3] @ weight, targets[rank::3]), weight
        )[0]
        for rank in range(3)
    )
    assert not torch.allclose(plain / 3, wanted)
