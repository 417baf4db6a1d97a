# SPDX-License-Identifier: MIT
"""Times batch normalisation, with and without a relu behind it, against torch's, in turns.

    python benchmarks/bench_batch_norm.py --json benchmarks/results/batch-norm.json
    python benchmarks/bench_batch_norm.py layer4 features --passes training --seconds 1

`training` is forward and backward with all gradients, `inference` the call with given statistics
and without gradients. torch is called in the same layout, and its relu in place. Every case is
compared with torch before it is timed; gradients are zero where rounding decides on the relu.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
import fastconv.functional as fastF

SHAPES = {
    "stem": (16, 64, 112, 112),
    "layer1": (16, 64, 56, 56),
    "layer2": (16, 128, 28, 28),
    "layer3": (16, 256, 14, 14),
    "layer4": (16, 512, 7, 7),
    "mobilenet": (16, 96, 56, 56),
    "batch1": (1, 64, 56, 56),
    "cifar": (64, 32, 32, 32),
    "crnn3": (16, 256, 8, 25),
    "crnn5": (16, 512, 4, 26),
    "crnn7": (16, 512, 1, 26),
    "small": (8, 16, 8, 8),
    "features": (512, 256),
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PASSES = ("training", "inference")
Run = Callable[[], tuple[Tensor, ...]]


def by_torch(x: Tensor, *args: Any, activation: str, **options: Any) -> Tensor:
    output = F.batch_norm(x, *args, **options)
    return F.relu(output, inplace=True) if activation == "relu" else output


SIDES: dict[str, Callable[..., Tensor]] = {"torch": by_torch, "fastconv": fastF.batch_norm}


def make(function: Callable[..., Tensor], x: Tensor, activation: str, which: str) -> Run:
    channels = x.shape[1]
    statistics = torch.zeros(channels), torch.ones(channels)
    weight, bias = torch.linspace(0.5, 1.5, channels), torch.linspace(-1, 1, channels)
    if which == "inference":

        def infer() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(x, *statistics, weight, bias, activation=activation),)

        return infer
    leaves = [x.clone(memory_format=torch.preserve_format), weight, bias]
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.no_grad():
        output = F.batch_norm(x, None, None, weight, bias, training=True)
        grad = x.roll(1, 0) * (output.abs() > 1e-4)

    def train() -> tuple[Tensor, ...]:
        output = function(leaves[0], *statistics, *leaves[1:], training=True, activation=activation)
        return torch.autograd.grad(output, leaves, grad)

    return train


def in_turns(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Median seconds of each run; an untimed call precedes each timed one."""
    times: dict[str, list[float]] = {side: [] for side in runs}
    stop = time.perf_counter() + seconds
    while len(times["torch"]) < 5 or time.perf_counter() < stop:
        for side, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - start)
    return {side: statistics.median(t) for side, t in times.items()}


def measure(shape: str, layout: str, activation: str, which: str, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(SHAPES[shape]).contiguous(memory_format=LAYOUTS[layout])
    runs = {side: make(function, x, activation, which) for side, function in SIDES.items()}
    for mine, theirs in zip(runs["fastconv"](), runs["torch"](), strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * scale)
    medians = in_turns(runs, seconds)
    return {
        "shape": shape,
        "size": list(x.shape),
        "layout": layout,
        "activation": activation,
        "pass": which,
        **{f"{side}_us": 1e6 * median for side, median in medians.items()},
        "ratio": medians["torch"] / medians["fastconv"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--passes", choices=PASSES, nargs="+", default=PASSES)
    parser.add_argument("--layouts", choices=[*LAYOUTS], nargs="+", default=[*LAYOUTS])
    parser.add_argument("--seconds", type=float, default=0.4, help="timing budget per case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    unknown = sorted({*args.shapes} - {*SHAPES})
    if unknown:
        parser.error(f"expected shapes among {', '.join(SHAPES)}, got {', '.join(unknown)}")
    torch.set_num_threads(args.threads)
    rows = []
    for shape, layout in itertools.product(args.shapes or SHAPES, args.layouts):
        if len(SHAPES[shape]) == 2 and layout != "nchw":  # one layout
            continue
        for activation, which in itertools.product(("none", "relu"), args.passes):
            row = measure(shape, layout, activation, which, args.seconds)
            rows.append(row)
            print(
                f"{shape:10} {layout} {activation} {which:9} torch {row['torch_us']:9.1f} us  "
                f"fastconv {row['fastconv_us']:9.1f} us  {row['ratio']:5.2f}x",
                flush=True,
            )
    ratios = [row["ratio"] for row in rows]
    print(
        f"geometric mean {statistics.geometric_mean(ratios):.2f} of {len(rows)}, "
        f"least {min(ratios):.2f}"
    )
    if args.json:
        facts = {"info": fastconv.runtime.info(), "rows": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
