# SPDX-License-Identifier: MIT
"""Times whole networks, training steps and inference: accelerated against torch as it is.

    python benchmarks/bench_models.py --json benchmarks/results/models.json
    python benchmarks/bench_models.py resnet18 crnn --what train --seconds 10
    python benchmarks/bench_models.py --sides fastconv "torch eager" --batch 4 --small
    python benchmarks/bench_models.py densenet121 --where

The networks are those of ``python_tests/zoo``, on stock torch layers; every side is the same object
copied, with the same weights. Sides take turns:

- ``torch eager``: as a newcomer writes it, NCHW and ``torch.optim.Adam``;
- ``torch tuned``: the best torch does without a compiler: channels_last and ``fused=True``, and
  ``inference_mode``;
- ``fastconv``: ``fastconv.accelerate(model, optimizer=...)`` on the newcomer's, nothing else;
- ``fastconv compile``: ``torch.compile(model, backend="fastconv")`` (only when asked for).

A training step is zero_grad, forward, loss, backward and Adam. Each side's first loss and the loss
after a step (or its outputs) are checked against torch's before anything is timed, and the losses
stand in the table. ``--where`` prints where the time of a step goes instead.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastconv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python_tests"))

from zoo import ZOO, Entry, Task

# Small enough that one step does not blow up any of the networks.
LEARNING_RATE = 1e-4
SIDES = ("torch eager", "torch tuned", "fastconv", "fastconv compile")
Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    network: str
    what: str
    batch: int
    threads: int
    milliseconds: dict[str, float]
    spread: dict[str, float]  # half the distance of the quartiles over the median
    turns: int
    losses: dict[str, list[float]]
    ratio: dict[str, float]  # of every torch side over fastconv


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def prepared(side: str, model: nn.Module, task: Task) -> tuple[nn.Module, Callable[..., Any], Task]:
    """The module that holds the parameters, what to call, and the task in the side's layout."""
    model = copy.deepcopy(model)
    if side == "torch tuned":
        return model.to(memory_format=torch.channels_last), model, task.map(channels_last)
    if side == "fastconv compile":
        return model, torch.compile(model, backend="fastconv"), task
    return model, model, task


def training_step(side: str, model: nn.Module, entry: Entry, task: Task) -> Run:
    model, call, task = prepared(side, model.train(), task)
    if side == "fastconv compile":
        optimizer: torch.optim.Optimizer = fastconv.optim.Adam(model.parameters(), LEARNING_RATE)
    else:
        fused = True if side == "torch tuned" else None
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=fused)
    if side == "fastconv":
        fastconv.accelerate(model, optimizer=optimizer)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = entry.loss(call(*task.inputs), *task.targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def inference(side: str, model: nn.Module, entry: Entry, task: Task) -> Run:
    model, call, task = prepared(side, model.eval(), task)
    if side == "fastconv":
        fastconv.accelerate(model)
    mode = torch.inference_mode if side == "torch tuned" else torch.no_grad

    def infer() -> Tensor:
        with mode():
            return call(*task.inputs)

    return infer


def check_losses(network: str, losses: dict[str, list[float]]) -> None:
    """Two steps' losses: the first on equal weights, the second after one step of Adam each.

    Adam's first step moves every weight by the learning rate in the direction of its gradient's
    sign, so the second loss may differ by more where gradients are zero but for rounding.
    """
    wanted = losses["torch eager"]
    for side, found in losses.items():
        for i, tolerance in ((0, 1e-4), (1, 1e-2)):
            if not math.isclose(found[i], wanted[i], rel_tol=tolerance, abs_tol=tolerance):
                raise SystemExit(
                    f"{network}, {side}: expected losses {wanted} as torch eager has, got {found}"
                )


def check_outputs(network: str, outputs: dict[str, Tensor]) -> None:
    wanted = outputs["torch eager"].double()
    rms = wanted.square().mean().sqrt().item()
    for side, found in outputs.items():
        error = (found.double() - wanted).abs().max().item()
        if not error <= 1e-4 * rms:
            raise SystemExit(
                f"{network}, {side}: expected outputs within 1e-4 of their rms {rms:.3g}, "
                f"got a difference of {error:.3g}"
            )


def in_turns(runs: dict[str, Run], seconds: float, least: int) -> dict[str, list[float]]:
    """Seconds of each run, all in turns. A short run is preceded by an untimed call, which pays for
    the caches and the thread pools that the side before it left behind."""
    times: dict[str, list[float]] = {side: [] for side in runs}
    stop = time.perf_counter() + seconds
    longest = 0.0
    while len(next(iter(times.values()))) < least or time.perf_counter() + longest < stop:
        turn = time.perf_counter()
        for side, run in runs.items():
            if not times[side] or times[side][-1] < 0.1:
                run()
            start = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - start)
        longest = time.perf_counter() - turn
    return times


def measure(entry: Entry, what: str, args: argparse.Namespace) -> Row:
    torch.manual_seed(0)
    model = (entry.small if args.small else entry.full)()
    make_task = entry.small_task if args.small else entry.full_task
    task = make_task(args.batch, torch.Generator().manual_seed(0))
    if args.layout == "nhwc":
        model, task = model.to(memory_format=torch.channels_last), task.map(channels_last)
    make = training_step if what == "train" else inference
    runs = {side: make(side, model, entry, task) for side in args.sides}
    del model
    if what == "train":
        losses = {side: [run().item(), run().item()] for side, run in runs.items()}
        check_losses(entry.name, losses)
    else:
        losses = {}
        check_outputs(entry.name, {side: run() for side, run in runs.items()})
    times = in_turns(runs, args.seconds, args.turns)
    medians = {side: statistics.median(t) for side, t in times.items()}
    spread = {}
    for side, t in times.items():
        quartiles = statistics.quantiles(t, n=4) if len(t) > 1 else [t[0]] * 3
        spread[side] = (quartiles[2] - quartiles[0]) / 2 / medians[side]
    ours = medians["fastconv"]
    return Row(
        entry.name, what, args.batch, torch.get_num_threads(),
        {side: t * 1e3 for side, t in medians.items()}, spread, len(next(iter(times.values()))),
        losses, {side: t / ours for side, t in medians.items() if side != "fastconv"},
    )  # fmt: skip


def row_text(row: Row) -> str:
    text = f"{row.network:16} {row.what:6}"
    for side, milliseconds in row.milliseconds.items():
        text += f"  {side} {milliseconds:9.2f} ms"
        text += f" ({row.ratio[side]:5.2f}x)" if side in row.ratio else ""
    if row.losses:
        text += "  losses " + " ".join(f"{found[1]:.6f}" for found in row.losses.values())
    return text + f"  {row.turns} turns, spread {max(row.spread.values()):.0%}"


# --- Where the time of a step goes ---------------------------------------------------------------


def where_the_time_goes(entry: Entry, what: str, args: argparse.Namespace) -> None:
    task = entry.full_task(args.batch, torch.Generator().manual_seed(0))
    make = training_step if what == "train" else inference
    for side in args.sides:
        torch.manual_seed(0)
        run = make(side, entry.full(), entry, task)
        for _ in range(2):
            run()
        repeats = 3
        with torch.profiler.profile() as profile:
            for _ in range(repeats):
                run()
        rows = [row for row in profile.key_averages() if row.self_cpu_time_total > 0]
        total = sum(row.self_cpu_time_total for row in rows)
        print(f"\n{entry.name} {what}, {side}: {total / repeats / 1e3:.1f} ms profiled")
        for row in sorted(rows, key=lambda row: -row.self_cpu_time_total)[: args.rows]:
            key = row.key.replace("(anonymous namespace)::", "").split("evaluate_function: ")[-1]
            print(
                f"  {row.self_cpu_time_total / total:6.1%} "
                f"{row.self_cpu_time_total / repeats / 1e3:9.2f} ms {row.count // repeats:5}x  "
                f"{key[:70]}"
            )
        del run
        gc.collect()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--what", choices=["train", "infer"], nargs="+", default=["train", "infer"])
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=list(SIDES[:3]))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layout", choices=["nchw", "nhwc"], default="nchw")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="timing budget per network")
    parser.add_argument("--turns", type=int, default=3, help="least number of turns")
    parser.add_argument("--small", action="store_true", help="the small networks of the tests")
    parser.add_argument("--where", action="store_true", help="print where the time goes instead")
    parser.add_argument("--rows", type=int, default=14, help="rows of --where")
    parser.add_argument("--json", type=Path, help="write or extend this file; a row measured again "
                        "replaces the one before")  # fmt: skip
    args = parser.parse_args()
    unknown = sorted(set(args.networks) - set(ZOO))
    if unknown:
        parser.error(f"expected networks among {', '.join(ZOO)}, got {', '.join(unknown)}")
    if not {"torch eager", "fastconv"} <= {*args.sides} and not args.where:
        parser.error("expected torch eager and fastconv among --sides")
    return args


def write_rows(path: Path, rows: list[Row]) -> None:
    """Rows of the same network, pass, batch and threads are replaced; the rest stays."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["network"], row["what"], row["batch"], row["threads"]

    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {key(row): row for row in [*kept, *map(asdict, rows)]}
    facts = {"info": fastconv.runtime.info(), "rows": list(merged.values())}
    path.write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name in args.networks or ZOO:
        for what in args.what:
            if args.where:
                where_the_time_goes(ZOO[name], what, args)
                continue
            rows.append(measure(ZOO[name], what, args))
            print(row_text(rows[-1]), flush=True)
            gc.collect()
            if args.json:
                write_rows(args.json, rows)
    for what in args.what:
        for side in args.sides:
            ratios = [row.ratio[side] for row in rows if row.what == what and side in row.ratio]
            if len(ratios) > 1:
                print(f"{what}, {side} over fastconv: geometric mean "
                      f"{statistics.geometric_mean(ratios):.2f} of {len(ratios)}, "
                      f"least {min(ratios):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
