# SPDX-License-Identifier: MIT
"""Pooling as a share of the machine's streaming bandwidth, on tensors larger than L2.

    python benchmarks/pool_bandwidth.py --json benchmarks/results/pool2d-bandwidth.json

A pass moves its input and its output once, and a byte per maximum in training. The probe beside it,
``b += a``, moves as many bytes in arrays of the same footprint (two reads and a write); both take
turns. Written lines that the processor reads first are not counted on either side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from compare import Runner, interleaved_medians

import fastconv
import fastconv.functional as F

# input [N, C, H, W], kernel, stride, padding
SHAPES = [
    ((16, 64, 56, 56), 2, 2, 0),
    ((16, 64, 112, 112), 2, 2, 0),
    ((16, 64, 112, 112), 3, 2, 1),
    ((16, 192, 28, 28), 3, 1, 1),
    ((16, 64, 224, 224), 2, 2, 0),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPS = {"max": F.max_pool2d, "avg": F.avg_pool2d}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def pool_passes(op: str, x: torch.Tensor, window: tuple[int, int, int]) -> dict[str, Runner]:
    """Inference, and the backward pass alone."""
    pool = OPS[op]
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    output = pool(leaf, *window)
    grad = torch.ones_like(output)

    def forward() -> None:
        with torch.no_grad():
            pool(x, *window)

    def backward() -> None:
        torch.autograd.grad(output, leaf, grad, retain_graph=True)

    return {"forward": forward, "backward": backward}


def stream_probe(footprint: int) -> tuple[Runner, int]:
    """``b += a`` on two arrays that take so many bytes together, and the bytes that it moves."""
    n = footprint // 8
    a, b = torch.zeros(n), torch.zeros(n)
    return lambda: b.add_(a), 12 * n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="timing budget per comparison")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows = []
    for layout, memory_format in LAYOUTS.items():
        for op in OPS:
            for size, *options in SHAPES:
                kernel, stride, padding = options
                x = torch.randn(size).to(DTYPES[args.dtype]).contiguous(memory_format=memory_format)
                outputs = OPS[op](x, kernel, stride, padding).numel()
                plain = (x.numel() + outputs) * x.element_size()
                for name, run in pool_passes(op, x, (kernel, stride, padding)).items():
                    moved = plain + (outputs if op == "max" and name == "backward" else 0)
                    probe, probe_bytes = stream_probe(moved)
                    seconds, probe_seconds = interleaved_medians([run, probe], args.seconds)
                    share = moved / seconds / (probe_bytes / probe_seconds)
                    what = f"{op} {'x'.join(map(str, size))} {kernel}x{kernel}/{stride} {layout}"
                    rows.append({"what": what, "pass": name, "megabytes": moved / 1e6,
                                 "gigabytes_per_second": moved / seconds / 1e9,
                                 "stream": probe_bytes / probe_seconds / 1e9,
                                 "share": share})  # fmt: skip
                    print(
                        f"{what:36} {name:8} {moved / 1e6:7.1f} MB {moved / seconds / 1e9:6.1f} "
                        f"GB/s, stream {probe_bytes / probe_seconds / 1e9:6.1f}, {share:5.0%}",
                        flush=True,
                    )
    if args.json:
        facts = {"info": fastconv.runtime.info(), "dtype": args.dtype, "rows": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
