# SPDX-License-Identifier: MIT
"""The benchmark tables hold the networks they name, and compare.py verifies before it times."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NETWORKS = sorted(path.stem for path in (BENCHMARKS / "shapes").glob("*.txt"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return load("compare")


# Weights of all convolutions, without biases: the published parameter counts of the networks less
# their classifiers, normalisations and biases.
PUBLISHED_WEIGHTS = {
    "alexnet": 2_468_544,
    "vgg16": 14_710_464,
    "googlenet": 5_966_272,
    "resnet18": 11_166_912,
    "resnet50": 23_454_912,
    "densenet121": 6_870_208,
    "mobilenetv2": 2_189_760,
}


@pytest.mark.parametrize("network", PUBLISHED_WEIGHTS)
def test_networks_have_their_published_size(compare: ModuleType, network: str) -> None:
    shapes = compare.load_shapes(network)
    assert sum(s.repeats * math.prod(s.weight_size) for s in shapes) == PUBLISHED_WEIGHTS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_shape_files_are_sound(compare: ModuleType, network: str) -> None:
    shapes = compare.load_shapes(network)
    assert len({s.name for s in shapes}) == len(shapes), "names are unique"
    layers = {(s.in_channels, s.height, s.width, s.out_channels, s.kernel, s.stride, s.padding,
               s.dilation, s.groups, s.needs_grad_input) for s in shapes}  # fmt: skip
    assert len(layers) == len(shapes), "layers are distinct"
    assert all(s.forward_flops(1) > 0 for s in shapes)


def test_first_layers_need_no_input_gradient(compare: ModuleType) -> None:
    for network in {*NETWORKS} - {"odd", "small"}:
        first, *rest = compare.load_shapes(network)
        assert not first.needs_grad_input, network
        assert all(s.needs_grad_input for s in rest), network


def test_compare_prints_and_records(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "compare.py", "lenet", "--batch", "2", "--seconds", "0",
         "--baseline", "both", "--only", "conv1", "--threads", "1", "--json", tmp_path / "o.json"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("FMA peak", "geometric mean", "losses:", "served by torch", "channels_last"):
        assert word in done.stdout
    recorded = json.loads((tmp_path / "o.json").read_text())
    assert recorded["fma_peak_gflops"] > 0
    first, second = recorded["rows"]
    assert set(first["algorithms"]) == {"conv2d_forward", "conv2d_grad_weight"}
    assert set(second["algorithms"]) == {*first["algorithms"], "conv2d_grad_input"}
    for row in (first, second):
        assert row["ratio"] == pytest.approx(row["torch_ms"] / row["fastconv_ms"])
        assert 0 < row["error"] < 1e-4
        assert 0 < row["share"] < 3


def test_models_prints_and_records(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "bench_models.py", "--small", "--batch", "2",
               "--seconds", "0", "--turns", "1", "--json", tmp_path / "o.json"]  # fmt: skip
    for networks, recorded in ((["lenet5", "lstm_lm"], 4), (["lenet5", "autoencoder"], 6)):
        done = subprocess.run(
            [*command, *networks], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        for word in ("torch eager", "torch tuned", "fastconv", "losses", "geometric mean"):
            assert word in done.stdout
        rows = json.loads((tmp_path / "o.json").read_text())["rows"]
        assert len(rows) == recorded, "a network measured again replaces its rows"
    for row in rows:
        ours = row["milliseconds"]["fastconv"]
        for side, ratio in row["ratio"].items():
            assert ratio == pytest.approx(row["milliseconds"][side] / ours)


def test_models_refuses_a_wrong_result() -> None:
    models = load("bench_models")
    right = torch.tensor([1.0, 2.0])
    models.check_outputs("net", {"torch eager": right, "fastconv": right})
    models.check_losses("net", {"torch eager": [1.0, 0.9], "fastconv": [1.0, 0.9]})
    for wrong in (right + 1e-3, right * math.nan):
        with pytest.raises(SystemExit, match="net, fastconv: expected outputs"):
            models.check_outputs("net", {"torch eager": right, "fastconv": wrong})
    for wrong in ([1.001, 0.9], [1.0, math.nan]):
        with pytest.raises(SystemExit, match="net, fastconv: expected losses"):
            models.check_losses("net", {"torch eager": [1.0, 0.9], "fastconv": wrong})


def test_compare_refuses_a_wrong_result(compare: ModuleType) -> None:
    right = torch.ones(4)
    assert compare.worst_error([right], [right]) == 0
    for wrong in (right + 1e-3, right * math.nan):
        with pytest.raises(SystemExit, match="expected an error below"):
            compare.worst_error([wrong], [right])


def test_compare_names_the_networks_it_knows(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "compare.py", "lenet6"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "got lenet6" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("channels", [16, 64, 256])
def test_winograd_is_about_as_exact_as_direct(channels: int) -> None:
    """At most twice torch's error and 2.5 times that of the direct kernels."""
    error = load("winograd_error")
    torch_rows, direct, *winograd = (error.measure(channels, who) for who in error.WHO)
    assert len(winograd) == 2
    for rows in winograd:
        for by_torch, plain, row in zip(torch_rows, direct, rows, strict=True):
            assert row.rms_error < 2 * by_torch.rms_error
            assert row.rms_error < 2.5 * plain.rms_error
            assert row.max_error < 2 * by_torch.max_error
