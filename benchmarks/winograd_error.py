# SPDX-License-Identifier: MIT
"""Reports the rounding errors of Winograd beside those of direct convolution and of torch.

    python benchmarks/winograd_error.py --json benchmarks/results/winograd-error.json

3x3 layers of normally distributed numbers (weights scaled to keep the variance), forward and both
gradients. Errors are against float64, in units of the rms of the result: the rms of the error, and
its largest value.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import fastconv
from fastconv import runtime

KERNELS = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight")
CHANNELS = (16, 32, 64, 128, 256, 512)
SIDE = 14
BATCH = 4
# Who computes, by which of fastconv's algorithms, if any.
WHO = {"torch": None, "direct": "panel", "winograd": "winograd", "4x4": "winograd_4x4"}


@dataclass(frozen=True)
class Row:
    kernel: str
    channels: int
    who: str
    rms_error: float
    max_error: float


def results(
    conv: Callable[..., torch.Tensor], x: torch.Tensor, w: torch.Tensor, grad: torch.Tensor
) -> dict[str, torch.Tensor]:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    output = conv(x, w, None, 1, 1)
    return dict(
        zip(KERNELS, (output.detach(), *torch.autograd.grad(output, (x, w), grad)), strict=True)
    )


def measure(channels: int, who: str) -> list[Row]:
    """The errors of one implementation, one row per kernel."""
    generator = torch.Generator().manual_seed(channels)
    x, grad = torch.randn(2, BATCH, channels, SIDE, SIDE, generator=generator)
    w = torch.randn(channels, channels, 3, 3, generator=generator) / math.sqrt(9 * channels)
    algorithm = WHO[who]
    ours = fastconv.functional.conv2d
    with contextlib.ExitStack() as forced:
        if algorithm is not None:
            for kernel in KERNELS:
                forced.enter_context(runtime.force_algorithm(kernel, algorithm))
        got = results(torch.nn.functional.conv2d if algorithm is None else ours, x, w, grad)
        for kernel in got:
            assert algorithm in (None, runtime.last_used_algorithm(kernel))
    exact = results(torch.nn.functional.conv2d, x.double(), w.double(), grad.double())
    rows = []
    for kernel, want in exact.items():
        error, rms = got[kernel] - want, want.square().mean().sqrt()
        rms_error = (error.square().mean().sqrt() / rms).item()
        rows.append(Row(kernel, channels, who, rms_error, (error.abs().max() / rms).item()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows = [row for channels in CHANNELS for who in WHO for row in measure(channels, who)]
    table = {(row.kernel, row.channels, row.who): row for row in rows}
    head = "".join(f"{who:>12} rms {'max':>8}" for who in WHO)
    print(f"{'kernel':18} {'channels':>8} {head}  winograd, 4x4 / direct")
    for kernel in KERNELS:
        for channels in CHANNELS:
            line = [table[kernel, channels, who] for who in WHO]
            text = "".join(f"{row.rms_error:16.2e} {row.max_error:8.1e}" for row in line)
            direct = line[1].rms_error
            ratios = ", ".join(f"{row.rms_error / direct:.2f}" for row in line[2:])
            print(f"{kernel:18} {channels:8} {text}  {ratios}")
    if args.json:
        facts = {"info": runtime.info(), "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
