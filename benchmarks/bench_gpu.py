# SPDX-License-Identifier: MIT
"""fastconv on a GPU against torch: eager, in a CUDA graph, and with cuDNN's own search on and off.

Every case is checked against torch before it is timed. The variants of a case run in turn, round
after round, so that clocks and temperature are the same for all; reported is the median of the
rounds, each of `calls` calls between two events.

    python benchmarks/bench_gpu.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastconv
import fastconv.functional as F
from fastconv import models, nn, optim

ROUNDS = 15
Call = Callable[[], Any]


def graphed(call: Call) -> Call:
    """The call's kernels recorded once and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def with_cudnn(call: Call, benchmark: bool) -> Call:
    def run() -> Any:
        torch.backends.cudnn.benchmark = benchmark
        return call()

    return run


def microseconds(call: Call, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / calls


def race(variants: dict[str, Call]) -> dict[str, dict[str, float]]:
    """Median and spread of every variant, in microseconds a call."""
    calls = {}
    for name, call in variants.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        calls[name] = max(1, min(200, int(5_000 / max(microseconds(call, 3), 1.0))))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, call in variants.items():
            times[name].append(microseconds(call, calls[name]))
    return {
        name: {"median_us": statistics.median(t), "least_us": min(t), "most_us": max(t)}
        for name, t in times.items()
    }


def check(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Differences as parts of the result's rms: their own rms, and the largest, which lies several
    roundings away among millions of 16-bit numbers."""
    bounds = {torch.float32: (2e-3, 1e-2), torch.float64: (1e-12, 1e-9)}  # TF32 in torch
    most_rms, most = bounds.get(theirs.dtype, (1e-2, 1e-1))
    ours, theirs = ours.double(), theirs.double()
    scale = theirs.square().mean().sqrt() + 1e-6
    difference = (ours - theirs).abs() / scale
    rms, largest = difference.square().mean().sqrt().item(), difference.max().item()
    if not (rms <= most_rms and largest <= most):
        sys.exit(
            f"bench_gpu.py: {what}: expected differences from torch of at most {most_rms} (rms) "
            f"and {most} (largest), got {rms:.3g} and {largest:.3g}"
        )


def training(forward: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], list[Tensor]]:
    """Forward and backward pass; the output's gradient has the same numbers for every variant,
    whatever its layout."""
    out = forward(*inputs).detach()
    generator = torch.Generator(out.device).manual_seed(0)
    numbers = torch.randn(out.shape, dtype=out.dtype, device=out.device, generator=generator)
    grad = torch.empty_like(out).copy_(numbers)

    def run() -> list[Tensor]:
        out = forward(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad)]

    return run


def against_torch(name: str, ours: Call, theirs: Call) -> dict[str, Any]:
    for a, b in zip(ours(), theirs(), strict=True):
        check(a.detach(), b.detach(), name)
    variants = {
        "fastconv": ours,
        "torch": with_cudnn(theirs, False),
        "torch, cudnn.benchmark": with_cudnn(theirs, True),
        "fastconv, graph": graphed(ours),
    }
    for benchmark, label in ((False, "torch, graph"), (True, "torch, graph, cudnn.benchmark")):
        torch.backends.cudnn.benchmark = benchmark
        variants[label] = graphed(theirs)
    return {"case": name, "times": race(variants)}


def convolutions(quick: bool) -> list[dict[str, Any]]:
    shapes = [("lenet conv1", (64, 1, 28, 28), (6, 1, 5, 5), 2),
              ("lenet conv2", (64, 6, 14, 14), (16, 6, 5, 5), 0),
              ("stem 7x7", (32, 3, 224, 224), (64, 3, 7, 7), 3),
              ("resnet 3x3", (32, 64, 56, 56), (64, 64, 3, 3), 1),
              ("resnet 1x1", (32, 256, 56, 56), (64, 256, 1, 1), 0)]  # fmt: skip
    results = []
    for label, x_size, w_size, padding in shapes[: 2 if quick else None]:
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(x_size, device="cuda", dtype=dtype).to(memory_format=layout)
                w = torch.randn(w_size, device="cuda", dtype=dtype) * w_size[1] ** -0.5
                w = w.to(memory_format=layout)
                x.requires_grad_()
                w.requires_grad_()
                name = f"{label}, {str(dtype)[6:]}, {str(layout)[6:]}"
                results.append(against_torch(
                    name,
                    training(lambda a, b, p=padding: F.conv2d(a, b, padding=p), x, w),
                    training(
                        lambda a, b, p=padding: torch.nn.functional.conv2d(a, b, padding=p), x, w
                    ),
                ))  # fmt: skip
    return results


def pooling(quick: bool) -> list[dict[str, Any]]:
    results = []
    for size in [(64, 6, 28, 28), (32, 64, 112, 112)][: 1 if quick else None]:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(size, device="cuda", dtype=dtype, requires_grad=True)
            results.append(against_torch(
                f"max_pool2d 2x2 {size}, {str(dtype)[6:]}",
                training(lambda t: F.max_pool2d(t, 2), x),
                training(lambda t: torch.nn.functional.max_pool2d(t, 2), x),
            ))  # fmt: skip
    return results


def lstm(quick: bool) -> list[dict[str, Any]]:
    results = []
    for hidden in (64, 128, 256, 512)[: 2 if quick else None]:
        for dtype in (torch.float32, torch.bfloat16):
            ours = nn.LSTM(hidden, hidden).to("cuda", dtype)
            theirs = torch.nn.LSTM(hidden, hidden).to("cuda", dtype)
            theirs.load_state_dict(ours.state_dict())
            x = torch.randn(128, 32, hidden, device="cuda", dtype=dtype, requires_grad=True)
            results.append(against_torch(
                f"lstm T=128 B=32 H={hidden}, {str(dtype)[6:]}",
                training(lambda t, m=ours: m(t)[0], x),
                training(lambda t, m=theirs: m(t)[0], x),
            ))  # fmt: skip
    return results


def lenet_steps() -> list[dict[str, Any]]:
    """A whole training step: forward, loss, backward, Adam."""
    results = []
    for batch in (64, 512):
        x, y = torch.randn(batch, 1, 28, 28, device="cuda"), torch.arange(batch, device="cuda") % 10

        def step(fast: bool, x: Tensor = x, y: Tensor = y) -> Call:
            torch.manual_seed(0)
            model = models.LeNet5(backend="fastconv" if fast else "torch").to("cuda")
            optimizer = (
                optim.Adam(model.parameters())
                if fast
                else torch.optim.Adam(model.parameters(), fused=True, capturable=True)
            )

            def run() -> list[Tensor]:
                optimizer.zero_grad(set_to_none=False)
                loss = torch.nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                return [loss]

            return run

        results.append(against_torch(f"lenet step B={batch}", step(True), step(False)))
    return results


def adam(quick: bool) -> list[dict[str, Any]]:
    results = []
    lists = {"lenet": [150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10], "25.6M": [100_000] * 256}
    for name, sizes in list(lists.items())[: 1 if quick else None]:
        calls = []
        for kind in (
            lambda p: optim.Adam(p),
            lambda p: torch.optim.Adam(p, fused=True, capturable=True),
        ):
            torch.manual_seed(0)
            params = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in sizes]
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer = kind(params)

            def run(
                optimizer: torch.optim.Optimizer = optimizer, first: Tensor = params[0]
            ) -> list[Tensor]:
                optimizer.step()
                return [first]

            calls.append(run)
        results.append(against_torch(f"adam {name}", *calls))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes only")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if fastconv.runtime.info()["cuda"] is None or not torch.cuda.is_available():
        sys.exit("bench_gpu.py: expected a CUDA build of fastconv and a GPU")
    quick = arguments.quick
    results = [*adam(quick), *pooling(quick), *convolutions(quick), *lstm(quick), *lenet_steps()]
    for result in results:
        base = result["times"]["fastconv"]["median_us"]
        print(result["case"])
        for name, t in result["times"].items():
            print(f"  {name:32} {t['median_us']:10.1f} us   {t['median_us'] / base:6.2f}")
    if arguments.output:
        facts = {
            "gpu": torch.cuda.get_device_name(),
            "capability": torch.cuda.get_device_capability(),
            "cudnn": torch.backends.cudnn.version(),
            **fastconv.runtime.info(),
        }
        arguments.output.write_text(json.dumps({"machine": facts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
