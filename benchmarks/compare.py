# SPDX-License-Identifier: MIT
"""Compares fastconv's conv2d with torch's, shape by shape, and prints wins and losses alike.

    python benchmarks/compare.py resnet50 --batch 16 --layout nchw --pass train

Every shape is verified first (against float64), then both sides are timed in turns within the same
second, so that a noisy machine slows both; the median of each side is reported. `train` is forward
plus all gradients the layer needs, `forward` and `backward` are the two halves.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import fastconv

SHAPES = Path(__file__).parent / "shapes"


@dataclass(frozen=True)
class ConvShape:
    """One line of a file in benchmarks/shapes."""

    name: str
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    dilation: int
    groups: int
    needs_grad_input: bool

    def forward_flops(self, batch: int) -> float:
        size = [
            (n + 2 * p - self.dilation * (k - 1) - 1) // self.stride + 1
            for n, p, k in zip((self.height, self.width), self.padding, self.kernel, strict=True)
        ]
        taps = self.kernel[0] * self.kernel[1]
        per_pixel = self.out_channels * self.in_channels // self.groups * taps
        return 2.0 * batch * size[0] * size[1] * per_pixel


def _pair(text: str) -> tuple[int, int]:
    parts = [int(part) for part in text.split("x")]
    return (parts[0], parts[-1])


def load_shapes(name: str) -> list[ConvShape]:
    shapes = []
    for line in (SHAPES / f"{name}.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        f = line.split()
        shapes.append(
            ConvShape(f[0], int(f[1]), int(f[2]), int(f[3]), int(f[4]), _pair(f[5]), int(f[6]),
                      _pair(f[7]), int(f[8]), int(f[9]), f[10] == "yes")
        )  # fmt: skip
    return shapes


Runner = Callable[[], None]


class Side:
    """One implementation of one layer: its tensors and the passes that can be timed."""

    def __init__(
        self, conv: Callable[..., torch.Tensor], shape: ConvShape, batch: int, channels_last: bool
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.randn(batch, shape.in_channels, shape.height, shape.width, generator=generator)
        self.input = x.contiguous(memory_format=layout).requires_grad_(shape.needs_grad_input)
        weight_size = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
        w = torch.randn(weight_size, generator=generator) / math.sqrt(math.prod(weight_size[1:]))
        self.weight = w.contiguous(memory_format=layout).requires_grad_()
        self.bias = torch.randn(shape.out_channels, generator=generator).requires_grad_()
        self.conv = conv
        self.options = (shape.stride, shape.padding, shape.dilation, shape.groups)
        self.output = self.run()
        self.grad = torch.randn(self.output.shape, generator=generator).contiguous(
            memory_format=layout
        )
        self.leaves = [t for t in (self.input, self.weight, self.bias) if t.requires_grad]

    def run(self) -> torch.Tensor:
        return self.conv(self.input, self.weight, self.bias, *self.options)

    def forward(self) -> None:
        with torch.no_grad():
            self.run()

    def backward(self) -> None:
        torch.autograd.grad(self.output, self.leaves, self.grad, retain_graph=True)

    def train(self) -> None:
        torch.autograd.grad(self.run(), self.leaves, self.grad)

    def results(self) -> list[torch.Tensor]:
        return [self.output, *torch.autograd.grad(self.run(), self.leaves, self.grad)]


def verify(ours: Side, theirs: Side) -> float:
    """Largest error of ours against float64, in units of its rms; raises when above 1e-4."""
    exact = torch.nn.functional.conv2d
    x, w, b = (t.detach().double().requires_grad_(t.requires_grad)
               for t in (ours.input, ours.weight, ours.bias))  # fmt: skip
    output = exact(x, w, b, *ours.options)
    leaves = [t for t in (x, w, b) if t.requires_grad]
    wanted = [output, *torch.autograd.grad(output, leaves, ours.grad.double())]
    worst = 0.0
    for got, want in zip(ours.results(), wanted, strict=True):
        rms = want.square().mean().sqrt().item()
        worst = max(worst, (got - want).abs().max().item() / rms)
    if not worst < 1e-4:
        raise SystemExit(f"compare: expected an error below 1e-4 of the rms, got {worst:.2e}")
    return worst


def interleaved_medians(runs: list[Runner], seconds: float, least: int = 5) -> list[float]:
    """Median seconds of each run; the runs take turns so that noise hits all alike."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    stop = time.perf_counter() + seconds
    while len(times[0]) < least or time.perf_counter() < stop:
        for slot, run in enumerate(runs):
            start = time.perf_counter()
            run()
            times[slot].append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


@dataclass(frozen=True)
class Row:
    shape: str
    batch: int
    layout: str
    which: str
    torch_ms: float
    fastconv_ms: float
    ratio: float
    gflops: float
    algorithm: str
    error: float


def compare_shape(
    shape: ConvShape, batch: int, channels_last: bool, which: str, seconds: float
) -> Row:
    theirs = Side(torch.nn.functional.conv2d, shape, batch, channels_last)
    ours = Side(fastconv.functional.conv2d, shape, batch, channels_last)
    error = verify(ours, theirs)
    torch_s, ours_s = interleaved_medians([getattr(theirs, which), getattr(ours, which)], seconds)
    passes = {"forward": 1, "backward": 1 + shape.needs_grad_input}
    passes["train"] = passes["forward"] + passes["backward"]
    flops = shape.forward_flops(batch) * passes[which]
    kernel = "conv2d_forward" if which == "forward" else "conv2d_grad_weight"
    return Row(
        shape=shape.name,
        batch=batch,
        layout="nhwc" if channels_last else "nchw",
        which=which,
        torch_ms=torch_s * 1e3,
        fastconv_ms=ours_s * 1e3,
        ratio=torch_s / ours_s,
        gflops=flops / ours_s * 1e-9,
        algorithm=fastconv.runtime.last_used_algorithm(kernel) or "torch",
        error=error,
    )


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted(path.stem for path in SHAPES.glob("*.txt"))
    parser.add_argument("shapes", nargs="+", help=f"shape files: {', '.join(names)}")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layout", choices=["nchw", "nhwc"], default="nchw")
    parser.add_argument(
        "--pass", dest="which", choices=["forward", "backward", "train"], default="train"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="timing budget per shape")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    unknown = sorted(set(args.shapes) - set(names))
    if unknown:
        parser.error(f"expected shape files among {', '.join(names)}, got {', '.join(unknown)}")
    torch.set_num_threads(args.threads)
    rows = []
    print(f"{'shape':>16} {'torch ms':>9} {'ours ms':>9} {'ratio':>6} {'GFLOP/s':>8}  algorithm")
    for name in args.shapes:
        for shape in load_shapes(name):
            if args.only not in shape.name:
                continue
            row = compare_shape(shape, args.batch, args.layout == "nhwc", args.which, args.seconds)
            rows.append(row)
            print(
                f"{row.shape:>16} {row.torch_ms:9.3f} {row.fastconv_ms:9.3f} {row.ratio:6.2f} "
                f"{row.gflops:8.0f}  {row.algorithm}",
                flush=True,
            )
    ratios = [row.ratio for row in rows]
    losses = [f"{row.shape} {row.ratio:.2f}" for row in rows if row.ratio < 1]
    worst = min(rows, key=lambda row: row.ratio)
    print(f"geometric mean {geometric_mean(ratios):.2f}, worst {worst.shape} {worst.ratio:.2f}")
    print(f"losses: {', '.join(losses) or 'none'}")
    if args.json:
        facts = {"info": fastconv.runtime.info(), "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
