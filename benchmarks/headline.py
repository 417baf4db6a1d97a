# SPDX-License-Identifier: MIT
"""Times the README's pooling layers and a whole LeNet-5 training step against torch, in turns.

    python benchmarks/headline.py --json benchmarks/results/pool2d-and-lenet-step.json

The LeNet-5 step is zero_grad, forward, cross entropy, backward and torch's fused Adam on both
sides; only the layers differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from compare import Runner, interleaved_medians

import fastconv
import fastconv.functional as F
from fastconv.models import LeNet5

# op, input [N, C, H, W], kernel, stride, padding
POOLS = [
    ("max", (64, 6, 28, 28), 2, 2, 0),
    ("max", (64, 16, 10, 10), 2, 2, 0),
    ("max", (16, 64, 112, 112), 3, 2, 1),
    ("max", (16, 64, 56, 56), 3, 2, 0),
    ("max", (16, 192, 28, 28), 3, 1, 1),
    ("max", (16, 128, 56, 56), 2, 2, 0),
    ("avg", (64, 6, 28, 28), 2, 2, 0),
    ("avg", (16, 64, 112, 112), 3, 2, 1),
]
OPS = {
    "max": (torch.nn.functional.max_pool2d, F.max_pool2d),
    "avg": (torch.nn.functional.avg_pool2d, F.avg_pool2d),
}
BATCHES = (1, 64, 512)


def pool_runs(
    pool: Callable[..., torch.Tensor], x: torch.Tensor, window: tuple[int, int, int]
) -> tuple[Runner, Runner]:
    """Forward alone, and forward with backward."""
    leaf = x.clone().requires_grad_()
    grad = torch.ones_like(pool(x, *window))

    def forward() -> None:
        with torch.no_grad():
            pool(x, *window)

    def training() -> None:
        torch.autograd.grad(pool(leaf, *window), leaf, grad)

    return forward, training


def lenet_step(backend: str, batch: int) -> Runner:
    torch.manual_seed(0)
    model = LeNet5(backend=backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="timing budget per comparison")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows = []

    def report(name: str, runs: list[Runner]) -> None:
        theirs, ours = (1e3 * s for s in interleaved_medians(runs, args.seconds))
        rows.append({"what": name, "torch_ms": theirs, "fastconv_ms": ours, "ratio": theirs / ours})
        print(f"{name:48} {theirs:9.3f} {ours:9.3f} {theirs / ours:6.2f}x", flush=True)

    for op, size, kernel, stride, padding in POOLS:
        x = torch.randn(size)
        window = (kernel, stride, padding)
        their_pool, our_pool = OPS[op]
        torch.testing.assert_close(our_pool(x, *window), their_pool(x, *window))
        theirs, ours = pool_runs(their_pool, x, window), pool_runs(our_pool, x, window)
        name = f"{op}_pool2d {'x'.join(map(str, size))} {kernel}x{kernel}/{stride} p{padding}"
        report(f"{name} forward", [theirs[0], ours[0]])
        report(f"{name} training", [theirs[1], ours[1]])
    for batch in BATCHES:
        runs = [lenet_step(backend, batch) for backend in ("torch", "fastconv")]
        report(f"LeNet-5 training step, batch {batch}", runs)
    if args.json:
        facts = {"info": fastconv.runtime.info(), "rows": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
