# SPDX-License-Identifier: MIT
"""Times the whole step() of Adam against torch's fused and default ones, in turns.

    python benchmarks/bench_adam.py --json benchmarks/results/adam.json

Each list of parameters is stepped three times by all, compared, and then timed: every optimizer
has parameters, gradients and states of its own, and takes --turn calls in a row, all of them timed,
before the next one's turn. With --turn 1 nobody finds its data in the cores' own caches.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

import fastconv
from fastconv import optim
from fastconv.models import LeNet5

Step = Callable[[], Any]
BYTES_PER_PARAMETER = 28  # four arrays read, three written
CLIP = 1.0


def resnet18_shapes() -> list[tuple[int, ...]]:
    """The 62 parameters of ResNet-18: convolutions, batch norms, one linear layer."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            shapes += [(width, inputs, 3, 3), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            if inputs != width:
                shapes += [(width, inputs, 1, 1), (width,), (width,)]
            inputs = width
    return [*shapes, (1000, 512), (1000,)]


LISTS: dict[str, list[tuple[int, ...]]] = {
    "LeNet-5": [tuple(p.shape) for p in LeNet5().parameters()],
    "200 x 1,000": [(1000,)] * 200,
    "ResNet-18": resnet18_shapes(),
    "11,000,000": [(11_000_000,)],
}


def clipping(params: list[Parameter], optimizer: torch.optim.Optimizer) -> Step:
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()

    return step


def fastconv_step(params: list[Parameter]) -> Step:
    return optim.Adam(params).step


def torch_fused(params: list[Parameter]) -> Step:
    return torch.optim.Adam(params, fused=True).step


def torch_default(params: list[Parameter]) -> Step:
    return torch.optim.Adam(params).step


def fastconv_clipping(params: list[Parameter]) -> Step:
    return optim.Adam(params, max_grad_norm=CLIP).step


def torch_clipping(params: list[Parameter]) -> Step:
    return clipping(params, torch.optim.Adam(params, fused=True))


def make(shapes: list[tuple[int, ...]], makers: list[Callable[[list[Parameter]], Step]]):
    """One step function per maker, each on parameters of its own that have been compared."""
    torch.manual_seed(0)
    base = [Parameter(torch.randn(shape)) for shape in shapes]
    copies = [copy.deepcopy(base) for _ in makers]
    for same in zip(*copies, strict=True):
        grad = torch.randn_like(same[0]) * 0.1
        for p in same:
            p.grad = grad.clone()
    steps = [maker(params) for maker, params in zip(makers, copies, strict=True)]
    for _ in range(3):
        for step in steps:
            step()
    for p, before in zip(copies[0], base, strict=True):
        assert not torch.equal(p, before)
    for params in copies[1:]:
        for p, q in zip(copies[0], params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    return steps


def medians(steps: list[Step], seconds: float, turn: int) -> list[float]:
    times: list[list[float]] = [[] for _ in steps]
    stop = time.perf_counter() + seconds
    while len(times[0]) < 5 * turn or time.perf_counter() < stop:
        for slot, step in enumerate(steps):
            for _ in range(turn):
                start = time.perf_counter()
                step()
                times[slot].append(time.perf_counter() - start)
    return [1e6 * statistics.median(t) for t in times]


def compare_lists(seconds: float, turn: int) -> list[dict[str, Any]]:
    rows = []
    for name, shapes in LISTS.items():
        plain = medians(make(shapes, [fastconv_step, torch_fused, torch_default]), seconds, turn)
        clipped = medians(make(shapes, [fastconv_clipping, torch_clipping]), seconds, turn)
        rows.append(
            {
                "parameters": name,
                "tensors": len(shapes),
                "elements": sum(torch.Size(shape).numel() for shape in shapes),
                "turn": turn,
                "fastconv_us": plain[0],
                "torch_fused_us": plain[1],
                "torch_default_us": plain[2],
                "over_fused": plain[1] / plain[0],
                "over_default": plain[2] / plain[0],
                "fastconv_clipping_us": clipped[0],
                "torch_clipping_us": clipped[1],
                "over_clipping": clipped[1] / clipped[0],
            }
        )
        print(
            f"{name:12} {plain[0]:9.1f} us  {rows[-1]['over_fused']:6.2f}x fused "
            f"{rows[-1]['over_default']:6.2f}x default | clipping {clipped[0]:9.1f} us "
            f"{rows[-1]['over_clipping']:6.2f}x clip_grad_norm_ + fused",
            flush=True,
        )
    return rows


def compare_bandwidth(seconds: float) -> dict[str, float]:
    """Bytes per second of one large step, against the best of three ways to stream memory.

    The streams touch as much memory as the step with its four arrays does: 176 MB, several times
    what caches hold.
    """
    size = 11_000_000
    a, b = torch.ones(2 * size), torch.ones(2 * size)
    c = torch.ones(4 * size)
    streams: list[tuple[float, Step]] = [
        (12.0 * a.numel(), lambda: a.add_(b, alpha=1e-9)),  # two read, one written
        (8.0 * c.numel(), lambda: c.mul_(1.0)),
        (8.0 * a.numel(), lambda: b.copy_(a)),
    ]
    steps = [*make([(size,)], [fastconv_step]), *(run for _, run in streams)]
    found = medians(steps, seconds, 3)
    stream = max(n / us / 1e3 for (n, _), us in zip(streams, found[1:], strict=True))
    step = BYTES_PER_PARAMETER * size / found[0] / 1e3
    print(
        f"one step of {size:,}: {step:.1f} GB/s, streaming {stream:.1f} GB/s: {step / stream:.2f}"
    )
    return {"step_gb_s": step, "stream_gb_s": stream, "share": step / stream}


def compare_denormals(seconds: float) -> dict[str, float]:
    """A list whose gradients have been zero for 2,000 steps, against the same with gradients."""
    states = []
    for zero in (False, True):
        params = [Parameter(torch.randn(1000)) for _ in range(20)]
        optimizer = optim.Adam(params)
        for p in params:
            p.grad = torch.full_like(p, 1e-3)
        optimizer.step()
        for p in params:
            if zero:
                p.grad = torch.zeros_like(p)
        for _ in range(2000):
            optimizer.step()
        states.append(optimizer.step)
    normal, denormal = medians(states, seconds, 10)
    print(f"zero gradients for 2,000 steps: {denormal:.1f} us, normal {normal:.1f} us")
    return {"normal_us": normal, "zero_gradients_us": denormal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="timing budget per comparison")
    parser.add_argument("--turn", type=int, default=10, help="calls in a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts: dict[str, Any] = {"info": fastconv.runtime.info()}
    facts["rows"] = compare_lists(args.seconds, args.turn)
    facts["bandwidth"] = compare_bandwidth(args.seconds)
    facts["denormals"] = compare_denormals(args.seconds)
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
