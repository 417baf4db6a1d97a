# SPDX-License-Identifier: MIT
"""fastconv.explain: what it measures and shows, and that it leaves the model alone."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_accelerate import TinyCrnn, small_net
from torch import Tensor, nn

import fastconv

X = torch.randn(4, 3, 18, 14)


def explain(model: nn.Module, x: Any = X, **options: Any) -> Any:
    return fastconv.explain(model, x, show=False, seconds=0.0, **options)


def test_layers_and_chains() -> None:
    found = explain(small_net().eval())
    assert [(row.name, row.type) for row in found.rows] == [
        ("0 .. 2", "Conv2d + ReLU + MaxPool2d"),
        ("3.0 .. 2", "Conv2d + LeakyReLU + AvgPool2d"),
        ("4", "Conv2d"),
        ("5", "AdaptiveAvgPool2d"),
    ]
    assert found.rows[0].input_shapes == [[4, 3, 18, 14]]
    assert "conv_block2d_forward" in found.rows[0].kernels
    assert "conv2d_forward" in found.rows[2].kernels
    assert fastconv.runtime.cpu_isa() in found.rows[2].kernels["conv2d_forward"]
    assert found.rows[3].kernels == {}  # a pooling over everything is torch's
    for row in found.rows:
        assert row.torch_ms > 0
        assert row.fastconv_ms > 0
        assert row.ratio == row.torch_ms / row.fastconv_ms
        assert 0 < row.error <= 2 * row.torch_error + 1e-6 < 1e-4
    assert found.ratio == found.torch_ms / found.fastconv_ms
    assert found.isa == fastconv.runtime.cpu_isa()
    assert found.threads == torch.get_num_threads()


def test_training_runs_the_backward_kernels() -> None:
    found = explain(small_net().train())
    assert found.training
    assert {"conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight"} <= {*found.rows[2].kernels}
    assert "conv_block2d_backward" in found.rows[0].kernels
    assert not explain(small_net().train(), training=False).training
    frozen = explain(small_net().requires_grad_(False).train())
    assert {*frozen.rows[2].kernels} == {"conv2d_forward"}


def test_a_network_of_convolutions_and_lstms() -> None:
    model = TinyCrnn()
    found = explain(model, torch.randn(3, 1, 8, 12))
    assert [row.type for row in found.rows] == ["Conv2d + Tanh + MaxPool2d", "LSTM", "LSTMCell"]
    assert {"lstm_forward", "lstm_backward"} <= {*found.rows[1].kernels}


def test_batch_normalisation_splits_a_chain_in_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    state = copy.deepcopy(model.state_dict())
    assert [row.name for row in explain(model).rows] == ["0", "1 .. 2", "3"]
    assert [row.name for row in explain(model.eval()).rows] == ["0 .. 3"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key  # statistics included


def test_the_model_stays_as_it_is() -> None:
    model = small_net()
    torch.manual_seed(5)
    explain(model)
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    fastconv.accelerate(model, filter_fn=lambda module, name: name == "4", fuse=False)
    assert [row.name for row in explain(model).rows] == ["4"]
    assert [name for name, m in model.named_modules() if "forward" in m.__dict__] == ["4"]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_works_in_place(training: bool) -> None:
    """Its input is measured again and again, and may need a gradient."""
    model = InPlace()
    rows = explain(model, training=training).rows
    assert [row.type for row in rows] == ["Conv2d", "Conv2d", "ReLU"]
    assert rows[2].error == rows[2].torch_error == 0.0
    assert model.relu.inplace


def test_what_torch_computes_is_called_torch() -> None:
    found = explain(small_net().double(), X.double())
    assert found.rows
    for row in found.rows:
        assert row.kernels == {}
        assert row.cells()[3] == "torch"


def test_a_wrong_result_shows() -> None:
    """Negative control: the error column is that of the accelerated layer."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    fastconv.accelerate(model)
    before = model[0].forward

    class Wrong(type(before)):  # type: ignore[misc]
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x) * (1 + 1e-3)

    model[0].__dict__["forward"] = Wrong(model[0], before._what)
    row = explain(model).rows[0]
    assert row.error == pytest.approx(1e-3, rel=0.01)
    assert row.torch_error < 1e-6


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.conv(input=y)


@pytest.mark.parametrize("arguments", [(X, X), {"x": X, "y": X}])
def test_several_arguments(arguments: Any) -> None:
    assert [row.name for row in explain(Keywords(), arguments).rows] == ["conv"]


def test_text_json_and_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_net().eval()
    found = fastconv.explain(
        model, X, seconds=0.0, json=tmp_path / "explain.json", png=tmp_path / "explain.png"
    )
    assert "fastconv ms" in capsys.readouterr().out
    text = str(found)
    assert "Conv2d + ReLU + MaxPool2d" in text
    assert "whole model" in text
    assert len({len(line.split("  ")[0]) > 0 for line in text.splitlines()}) == 1
    data = json.loads((tmp_path / "explain.json").read_text())
    assert data == json.loads(found.to_json()) == found.to_dict()
    assert data["rows"][0]["ratio"] == found.rows[0].ratio
    assert (tmp_path / "explain.png").read_bytes().startswith(b"\x89PNG")


def test_without_rich_it_prints_plain_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    found = explain(small_net())
    found.show()
    assert capsys.readouterr().out == f"{found}\n"


def test_without_matplotlib_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        explain(small_net(), png=tmp_path / "explain.png")


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"explain: expected a torch\.nn\.Module, got int"):
        fastconv.explain(3, X)  # type: ignore[arg-type]
