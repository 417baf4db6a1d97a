# SPDX-License-Identifier: MIT
"""Compares fastconv's conv2d with torch's, shape by shape, and prints wins and losses alike.

    python benchmarks/compare.py resnet50 --batch 16 --layout nchw --pass train

Every shape is verified first: against float64 on as many images as that takes a moment for, and
against torch on the whole batch. Then all sides are timed in turns within the same second, so that
a noisy machine slows every one; the median of each is reported. `train` is forward plus all
gradients the layer needs, `forward` and `backward` are its two halves, `grad_input` and
`grad_weight` (with the bias) the halves of the latter. With `--baseline both`,
torch runs in channels_last as well, whatever fastconv's layout is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import fastconv
from fastconv import runtime

SHAPES = Path(__file__).parent / "shapes"
LARGEST_ERROR = 1e-4  # of the rms of a result
EXACT_FLOPS = 2e9  # of a forward pass in float64


@dataclass(frozen=True)
class ConvShape:
    """One line of a file in benchmarks/shapes."""

    network: str
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
    repeats: int

    @property
    def weight_size(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    def forward_flops(self, batch: int) -> float:
        size = [
            (n + 2 * p - self.dilation * (k - 1) - 1) // self.stride + 1
            for n, p, k in zip((self.height, self.width), self.padding, self.kernel, strict=True)
        ]
        return 2.0 * batch * size[0] * size[1] * math.prod(self.weight_size)


def _pair(text: str) -> tuple[int, int]:
    parts = [int(part) for part in text.split("x")]
    return (parts[0], parts[-1])


def load_shapes(network: str) -> list[ConvShape]:
    shapes = []
    for line in (SHAPES / f"{network}.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        f = line.split()
        shapes.append(
            ConvShape(network, f[0], int(f[1]), int(f[2]), int(f[3]), int(f[4]), _pair(f[5]),
                      int(f[6]), _pair(f[7]), int(f[8]), int(f[9]), f[10] == "yes",
                      int(f[11]) if len(f) > 11 else 1)
        )  # fmt: skip
    return shapes


Runner = Callable[[], None]


class Side:
    """One implementation of one layer: its tensors and the passes that can be timed."""

    def __init__(
        self, conv: Callable[..., torch.Tensor], shape: ConvShape, batch: int, layout: str
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        x = torch.randn(batch, shape.in_channels, shape.height, shape.width, generator=generator)
        self.input = x.contiguous(memory_format=self.format).requires_grad_(shape.needs_grad_input)
        w = torch.randn(shape.weight_size, generator=generator)
        w /= math.sqrt(math.prod(shape.weight_size[1:]))
        self.weight = w.contiguous(memory_format=self.format).requires_grad_()
        self.bias = torch.randn(shape.out_channels, generator=generator).requires_grad_()
        self.conv = conv
        self.options = (shape.stride, shape.padding, shape.dilation, shape.groups)
        self.output = self.run()
        grad = torch.randn(self.output.shape, generator=generator)
        self.grad = grad.contiguous(memory_format=self.format)
        self.leaves = [t for t in (self.input, self.weight, self.bias) if t.requires_grad]

    def run(self) -> torch.Tensor:
        return self.conv(self.input, self.weight, self.bias, *self.options)

    def forward(self) -> None:
        with torch.no_grad():
            self.run()

    def backward(self) -> None:
        self.gradients(self.leaves)

    def grad_input(self) -> None:
        self.gradients([self.input])

    def grad_weight(self) -> None:
        self.gradients([self.weight, self.bias])

    def gradients(self, leaves: list[torch.Tensor]) -> None:
        torch.autograd.grad(self.output, leaves, self.grad, retain_graph=True)

    def train(self) -> None:
        torch.autograd.grad(self.run(), self.leaves, self.grad)

    def results(self) -> list[torch.Tensor]:
        return [self.output.detach(), *torch.autograd.grad(self.run(), self.leaves, self.grad)]

    def exact_results(self) -> list[torch.Tensor]:
        """The same in float64, by torch."""
        x, w, b = (t.detach().double().requires_grad_(t.requires_grad)
                   for t in (self.input, self.weight, self.bias))  # fmt: skip
        output = torch.nn.functional.conv2d(x, w, b, *self.options)
        leaves = [t for t in (x, w, b) if t.requires_grad]
        return [output.detach(), *torch.autograd.grad(output, leaves, self.grad.double())]


def worst_error(results: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Largest difference of two results in units of their rms; SystemExit when it is too large."""
    worst = 0.0
    for got, want in zip(results, wanted, strict=True):
        rms = want.square().mean().sqrt().item()
        error = (got - want).abs().max().item() / rms
        if not error < LARGEST_ERROR:  # written so that a NaN fails
            raise SystemExit(
                f"compare: expected an error below {LARGEST_ERROR} of the rms, got {error:.2e}"
            )
        worst = max(worst, error)
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
    """One shape, measured."""

    network: str
    shape: str
    repeats: int  # times the network has this layer
    batch: int
    layout: str
    which: str
    torch_ms: float  # same layout as fastconv
    fastconv_ms: float
    ratio: float  # torch_ms / fastconv_ms
    channels_last_ms: float | None  # torch in channels_last, with --baseline both
    gflops: float  # of the plain algorithm; Winograd does fewer
    share: float  # gflops / measured peak
    algorithms: dict[str, str]  # by kernel; "torch" where torch's operator served
    error: float  # largest, against float64, in units of the rms

    @property
    def by_torch(self) -> bool:
        return "torch" in self.algorithms.values()


@dataclass(frozen=True)
class Setup:
    batch: int
    layout: str
    which: str
    seconds: float
    both_baselines: bool
    peak: float  # GFLOP/s


def kernels_of(shape: ConvShape, which: str) -> list[str]:
    """The kernels that a pass runs; each does as many operations as the forward pass."""
    backward = ["conv2d_grad_weight"]
    if shape.needs_grad_input:
        backward.insert(0, "conv2d_grad_input")
    return {
        "forward": ["conv2d_forward"],
        "backward": backward,
        "grad_input": ["conv2d_grad_input"],
        "grad_weight": ["conv2d_grad_weight"],
        "train": ["conv2d_forward", *backward],
    }[which]


def compare_shape(shape: ConvShape, setup: Setup) -> Row:
    ours_conv, torch_conv = fastconv.functional.conv2d, torch.nn.functional.conv2d
    images = min(setup.batch, max(1, int(EXACT_FLOPS / shape.forward_flops(1))))
    small = Side(ours_conv, shape, images, setup.layout)
    error = worst_error(small.results(), small.exact_results())
    ours = Side(ours_conv, shape, setup.batch, setup.layout)
    theirs = [Side(torch_conv, shape, setup.batch, setup.layout)]
    if setup.both_baselines:
        theirs.append(Side(torch_conv, shape, setup.batch, "nhwc"))
    worst_error(ours.results(), theirs[0].results())
    runs = [getattr(side, setup.which) for side in (ours, *theirs)]
    ours_s, torch_s, *channels_last_s = interleaved_medians(runs, setup.seconds)
    kernels = kernels_of(shape, setup.which)
    gflops = 1e-9 * shape.forward_flops(setup.batch) * len(kernels) / ours_s
    runs[0]()
    return Row(
        network=shape.network,
        shape=shape.name,
        repeats=shape.repeats,
        batch=setup.batch,
        layout=setup.layout,
        which=setup.which,
        torch_ms=torch_s * 1e3,
        fastconv_ms=ours_s * 1e3,
        ratio=torch_s / ours_s,
        channels_last_ms=channels_last_s[0] * 1e3 if channels_last_s else None,
        gflops=gflops,
        share=gflops / setup.peak,
        algorithms={k: runtime.last_used_algorithm(k) or "none" for k in kernels},
        error=error,
    )


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


HEADING = f"{'shape':>18} {'torch ms':>9} {'ours ms':>9} {'ratio':>6} {'GFLOP/s':>8} {'peak':>6}"


def row_text(row: Row) -> str:
    text = (
        f"{row.shape:>18} {row.torch_ms:9.3f} {row.fastconv_ms:9.3f} {row.ratio:6.2f} "
        f"{row.gflops:8.0f} {row.share:6.0%}"
    )
    if row.channels_last_ms is not None:
        text += f" {row.channels_last_ms:9.3f} {row.channels_last_ms / row.fastconv_ms:6.2f}"
    names = list(row.algorithms.values())
    return f"{text}  {names[0] if len(set(names)) == 1 else ' '.join(names)}"


def summary(rows: list[Row]) -> str:
    """Geometric mean, worst, losses, what torch served, and the time of all layers together."""
    worst = min(rows, key=lambda row: row.ratio)
    losses = [f"{row.shape} {row.ratio:.2f}" for row in rows if row.ratio < 1]
    by_torch = [row.shape for row in rows if row.by_torch]
    torch_ms, ours_ms = (
        sum(row.repeats * ms for row, ms in zip(rows, column, strict=True))
        for column in ([r.torch_ms for r in rows], [r.fastconv_ms for r in rows])
    )
    lines = [
        f"geometric mean {geometric_mean([row.ratio for row in rows]):.2f} of {len(rows)} shapes, "
        f"worst {worst.shape} {worst.ratio:.2f}, all layers as often as the network has them: "
        f"{torch_ms:.1f} / {ours_ms:.1f} ms = {torch_ms / max(ours_ms, 1e-9):.2f}",
        f"losses: {', '.join(losses) or 'none'}",
        f"served by torch, in whole or in part: {len(by_torch)} of {len(rows)}"
        f"{': ' if by_torch else ''}{', '.join(by_torch)}",
    ]
    other = [r.channels_last_ms / r.fastconv_ms for r in rows if r.channels_last_ms is not None]
    if other:
        lines.append(f"against torch in channels_last: geometric mean {geometric_mean(other):.2f}")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted(path.stem for path in SHAPES.glob("*.txt"))
    parser.add_argument("networks", nargs="+", help=f"shape files: {', '.join(names)}")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layout", choices=["nchw", "nhwc"], default="nchw")
    parser.add_argument(
        "--pass",
        dest="which",
        choices=["forward", "backward", "grad_input", "grad_weight", "train"],
        default="train",
    )
    parser.add_argument(
        "--baseline",
        choices=["same", "both"],
        default="same",
        help="torch in the same layout, or in channels_last as well",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--isa", choices=runtime.available_isas(), help="force fastconv's kernels")
    parser.add_argument("--seconds", type=float, default=1.0, help="timing budget per shape")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--slice", default=":", help="a part of the shapes, e.g. 10:20")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    unknown = sorted(set(args.networks) - set(names))
    if unknown:
        parser.error(f"expected shape files among {', '.join(names)}, got {', '.join(unknown)}")
    return args


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with runtime.force_cpu_isa(args.isa) if args.isa else contextlib.nullcontext():
        peak = runtime.fma_peak()
        both = args.baseline == "both"
        setup = Setup(args.batch, args.layout, args.which, args.seconds, both, peak)
        print(f"{args.threads} threads, {runtime.cpu_isa()}, FMA peak {peak:.0f} GFLOP/s")
        rows = []
        first, last = (int(part) if part else None for part in args.slice.split(":"))
        for network in args.networks:
            shapes = [s for s in load_shapes(network) if args.only in s.name][first:last]
            shapes = [s for s in shapes if s.needs_grad_input or args.which != "grad_input"]
            if not shapes:
                continue
            print(f"{network}\n{HEADING}{'   nhwc ms  ratio' if both else ''}  algorithms")
            mine = []
            for shape in shapes:
                mine.append(compare_shape(shape, setup))
                print(row_text(mine[-1]), flush=True)
            print(summary(mine))
            rows += mine
        info = runtime.info()
    if not rows:
        raise SystemExit(f"compare: no shape's name contains '{args.only}'")
    if len(args.networks) > 1:
        print(f"all\n{summary(rows)}")
    if args.json:
        facts = {"info": info, "fma_peak_gflops": peak, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
