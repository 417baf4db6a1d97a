# SPDX-License-Identifier: MIT
"""Shows that conv2d's cost grows linearly with the batch and with the pixels.

    python benchmarks/linearity.py --out benchmarks/results/conv2d-linearity

Writes OUT.json and OUT.png. Every curve is one layer's training pass, and is compared with the line
(fixed cost) + (cost per image or pixel) * x that fits it best; `off_line` is the largest deviation
of a point from that line, relative to the line. Both sides are timed in turns, fastconv and torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from compare import Side, interleaved_medians, load_shapes

import fastconv
from fastconv import runtime

LAYERS = [
    ("lenet", "conv2"),
    ("small", "10to10"),
    ("resnet18", "3x3_64_64_56"),
    ("resnet50", "1x1_256_64_56"),
    ("mobilenetv2", "dw3x3_144_56"),
]
BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (14, 20, 28, 40, 56, 80)
PIXELS_BATCH = 8


@dataclass(frozen=True)
class Curve:
    network: str
    shape: str
    against: str  # "batch" or "pixels"
    x: list[int]
    torch_ms: list[float]
    fastconv_ms: list[float]
    fixed_ms: float
    off_line: float


def fit_line(x: list[int], y: list[float]) -> tuple[float, float]:
    """The line of least relative squares: its value at 0, and the largest relative deviation."""
    xs, ys = (torch.tensor(values, dtype=torch.float64) for values in (x, y))
    columns = torch.stack([torch.ones_like(xs), xs], dim=1)
    line = torch.linalg.lstsq(columns / ys[:, None], torch.ones_like(ys)[:, None]).solution
    fitted = (columns @ line).squeeze(1)
    return line[0].item(), ((ys - fitted) / fitted).abs().max().item()


def curve(network: str, name: str, against: str, seconds: float) -> Curve:
    (shape,) = (s for s in load_shapes(network) if s.name == name)
    points = []
    for value in BATCHES if against == "batch" else SIDES:
        if against == "batch":
            x, batch, layer = value, value, shape
        else:
            x, batch = value * value, PIXELS_BATCH
            layer = dataclasses.replace(shape, height=value, width=value)
        convs = (torch.nn.functional.conv2d, fastconv.functional.conv2d)
        sides = [Side(conv, layer, batch, "nchw") for conv in convs]
        times = interleaved_medians([side.train for side in sides], seconds)
        points.append((x, *(1e3 * t for t in times)))
    xs, theirs, ours = (list(column) for column in zip(*points, strict=True))
    return Curve(network, name, against, xs, theirs, ours, *fit_line(xs, ours))


def plot(curves: list[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for panel, against in zip(panels, ("batch", "pixels"), strict=True):
        for number, c in enumerate(c for c in curves if c.against == against):
            color = f"C{number}"
            label = f"{c.network} {c.shape}"
            panel.plot(c.x, c.fastconv_ms, color=color, marker="o", markersize=3, label=label)
            panel.plot(c.x, c.torch_ms, color=color, linestyle=":")
        unit = "images" if against == "batch" else f"pixels of each of {PIXELS_BATCH} images"
        panel.set(xscale="log", yscale="log", xlabel=unit, ylabel="training pass, ms")
        ticks = sorted({x for c in curves if c.against == against for x in c.x})
        panel.set_xticks(ticks, [str(x) for x in ticks])
        panel.set_xticks([], minor=True)
        panel.grid(True, which="both", alpha=0.3)
    panels[0].legend(fontsize=8, title="solid fastconv, dotted torch", title_fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="timing budget per point")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.json and OUT.png")
    args = parser.parse_args()
    curves = []
    for network, name in LAYERS:
        for against in ("batch", "pixels"):
            curves.append(curve(network, name, against, args.seconds))
            c = curves[-1]
            times = " ".join(f"{ms:.2f}" for ms in c.fastconv_ms)
            print(
                f"{network} {name} against {against}: off the line by {c.off_line:.0%}, ms {times}"
            )
    facts = {"info": runtime.info(), "curves": [asdict(c) for c in curves]}
    args.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(curves, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
