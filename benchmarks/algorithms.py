# SPDX-License-Identifier: MIT
"""Times every algorithm of conv2d on every layer: the table the choice of an algorithm rests on.

    python benchmarks/algorithms.py resnet18 vgg16 --batch 16 --layout nchw

Each algorithm is forced in turn (torch's operator is one of them), the runs interleave, and the
median of each counts. The chosen one is what fastconv picks by itself; `lost` is how much longer
that takes than the best one. Layers are printed with the greatest loss last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from functools import partial
from pathlib import Path

import torch
from compare import ConvShape, interleaved_medians, load_shapes

import fastconv
from fastconv import runtime

KERNELS = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight")


class Layer:
    """One layer's tensors and its three passes, one call each."""

    def __init__(self, shape: ConvShape, batch: int, layout: str) -> None:
        memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        size = (batch, shape.in_channels, shape.height, shape.width)
        self.input = torch.randn(size).contiguous(memory_format=memory_format)
        self.weight = torch.randn(shape.weight_size) / 10
        self.options = ([shape.stride] * 2, list(shape.padding), [shape.dilation] * 2, shape.groups)
        self.grad = torch.randn_like(self.forward())

    def forward(self) -> torch.Tensor:
        return torch.ops.fastconv.conv2d(self.input, self.weight, None, *self.options)

    def run(self, kernel: str) -> None:
        if kernel == "conv2d_forward":
            self.forward()
            return
        weight = kernel == "conv2d_grad_weight"
        torch.ops.fastconv._conv2d_backward(
            self.grad, self.input, self.weight, *self.options, [not weight, weight, False]
        )

    def run_forced(self, kernel: str, algorithm: str) -> None:
        with runtime.force_algorithm(kernel, algorithm):
            self.run(kernel)


def possible_algorithms(layer: Layer, kernel: str) -> list[str]:
    names = []
    for name in runtime.algorithms(kernel):
        with contextlib.suppress(ValueError):
            layer.run_forced(kernel, name)
            names.append(name)
    return names


def measure(layer: Layer, kernel: str, seconds: float) -> tuple[str, dict[str, float]]:
    """The algorithm fastconv chooses, and the milliseconds of each."""
    names = possible_algorithms(layer, kernel)
    runs = [partial(layer.run_forced, kernel, name) for name in names]
    times = [1e3 * time for time in interleaved_medians(runs, seconds)]
    layer.run(kernel)
    return runtime.last_used_algorithm(kernel), dict(zip(names, times, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+", help="files of benchmarks/shapes, without .txt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.3, help="for one layer and pass")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"fastconv {fastconv.__version__}, torch {torch.__version__}, {runtime.cpu_isa()}")

    rows = []
    with torch.no_grad():
        for shape in (s for network in options.shapes for s in load_shapes(network)):
            layer = Layer(shape, options.batch, options.layout)
            for kernel in KERNELS:
                if kernel == "conv2d_grad_input" and not shape.needs_grad_input:
                    continue
                chosen, times = measure(layer, kernel, options.seconds)
                lost = times[chosen] / min(times.values()) - 1.0
                rows.append(
                    {"shape": f"{shape.network}/{shape.name}", "kernel": kernel}
                    | {"chosen": chosen, "lost": lost, "ms": times}
                )
    for row in sorted(rows, key=lambda row: row["lost"]):
        best_first = sorted(row["ms"].items(), key=lambda item: item[1])
        times = "  ".join(f"{name} {ms:.3f}" for name, ms in best_first)
        print(
            f"{row['shape']:30} {row['kernel']:18} {row['chosen']:15} {row['lost']:5.0%}  {times}"
        )
    mean = sum(row["lost"] for row in rows) / len(rows)
    print(f"{len(rows)} rows, mean loss of the choice {mean:.1%}")
    if options.json:
        run = {"batch": options.batch, "layout": options.layout, "threads": options.threads}
        options.json.write_text(json.dumps({"run": run, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
