# SPDX-License-Identifier: MIT
"""Reports the memory that conv2d needs beside its operands and results, per layer and pass.

    python benchmarks/memory.py resnet50 unet --layout nchw --json out.json

`extra` is the most that was allocated at any moment of the call, as torch's profiler sees it
(scratch, copies, packed weights), less the results; `limit` is the larger of the layer's input and
output. Layers above the limit are listed; where torch's operator serves, its own memory is counted.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from compare import SHAPES, ConvShape, Side, load_shapes
from torch.profiler import ProfilerActivity, profile

import fastconv
from fastconv import runtime

PASSES = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Row:
    network: str
    shape: str
    layout: str
    which: str
    algorithm: str
    limit_bytes: int
    extra_bytes: int
    weight_bytes: int


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes that were allocated at once in `call`, which must return what it makes.

    It runs on a fresh thread: the scratch block that a thread keeps for its next call would be
    missing from the count.
    """
    peaks: list[int] = []

    def run() -> None:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            made = call()
        events = record.profiler.kineto_results.events()
        sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        total = peak = 0
        for _, size in sizes:
            total += size
            peak = max(peak, total)
        if sizes:
            peaks.append(peak)
        del made

    for _ in range(3):  # on a busy machine the profiler can start too late and see nothing
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if peaks:
            return peaks[0]
    raise RuntimeError("memory: expected allocations in the profile, got none")


def measure(shape: ConvShape, batch: int, layout: str) -> list[Row]:
    side = Side(fastconv.functional.conv2d, shape, batch, layout)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return side.run()

    def gradients(leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(side.output, leaves, side.grad, retain_graph=True)

    runs: dict[str, tuple[Callable[[], object], int]] = {
        "forward": (forward, side.output.nbytes),
        "grad_input": (lambda: gradients([side.input]), side.input.nbytes),
        "grad_weight": (
            lambda: gradients([side.weight, side.bias]),
            side.weight.nbytes + side.bias.nbytes,
        ),
    }
    if not shape.needs_grad_input:
        del runs["grad_input"]
    rows = []
    for which, (call, results) in runs.items():
        extra = max(0, peak_of(call) - results)
        algorithm = runtime.last_used_algorithm(f"conv2d_{which}") or "none"
        limit = max(side.input.nbytes, side.output.nbytes)
        rows.append(
            Row(shape.network, shape.name, layout, which, algorithm, limit, extra,
                side.weight.nbytes)
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted(path.stem for path in SHAPES.glob("*.txt"))
    parser.add_argument("networks", nargs="+", choices=names, metavar="network")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layout", choices=["nchw", "nhwc"], default="nchw")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    with profile(activities=[ProfilerActivity.CPU]):
        pass  # the profiler must first run on the main thread
    shapes = [shape for network in args.networks for shape in load_shapes(network)]
    rows = [row for shape in shapes for row in measure(shape, args.batch, args.layout)]
    above = sorted((r for r in rows if r.extra_bytes > r.limit_bytes),
                   key=lambda r: r.limit_bytes / r.extra_bytes)  # fmt: skip
    for r in above:
        print(
            f"{r.network:12} {r.shape:18} {r.which:11} {r.algorithm:15} extra "
            f"{r.extra_bytes / 1e6:7.2f} MB, limit {r.limit_bytes / 1e6:7.2f} MB, "
            f"weight {r.weight_bytes / 1e6:6.2f} MB"
        )
    own = [r for r in above if r.algorithm != "torch"]
    print(
        f"{len(above)} of {len(rows)} calls above the limit, {len(own)} of them fastconv's kernels"
    )
    if args.json:
        facts = {"info": runtime.info(), "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
