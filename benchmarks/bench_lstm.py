# SPDX-License-Identifier: MIT
"""Times LSTM layers and cells against torch, in turns, and prints wins and losses alike.

    python benchmarks/bench_lstm.py --json benchmarks/results/lstm.json
    python benchmarks/bench_lstm.py sizes --only h50 h128

Groups: `sizes` are layers trained and run in full batches; `deepbench` the sizes that Baidu's
DeepBench publishes for training and inference; `ragged` batches that are about 57 % full, as
padded, packed and lengths= runs ("packed before": without the time to pack and unpack); `cells`
loops of 100 steps of LSTMCell; `scan`, only when asked for, 32 to 1024 units by batches of 1 to 64,
to find where torch comes closest (`scan --only h32b1 h32b4` for some). Training is forward and
every gradient of the layer's parameters; both sides share parameters and inputs. Every case is
verified against torch before it is timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from compare import Runner, interleaved_medians
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastconv
from fastconv import nn


@dataclass(frozen=True)
class Size:
    """Input and hidden size, layers, batch, steps."""

    input: int
    hidden: int
    layers: int
    batch: int
    steps: int

    def __str__(self) -> str:
        return f"I{self.input} H{self.hidden} L{self.layers} B{self.batch} T{self.steps}"


SIZES = {
    "h50": Size(1, 50, 1, 32, 30),
    "h128": Size(64, 128, 2, 64, 100),
    "h512": Size(256, 512, 1, 64, 64),
    "b1h64": Size(16, 64, 1, 1, 50),
    "char": Size(128, 256, 2, 64, 128),
    "h1024": Size(1024, 1024, 1, 32, 50),
    "h1024b1": Size(1024, 1024, 1, 1, 50),
    "h1024b4": Size(1024, 1024, 1, 4, 50),
    "h32": Size(8, 32, 1, 16, 20),
    "h200": Size(100, 200, 1, 20, 35),
}
DEEPBENCH = {
    "train512b16": Size(512, 512, 1, 16, 25),
    "train512b64": Size(512, 512, 1, 64, 25),
    "train1024b16": Size(1024, 1024, 1, 16, 25),
    "train1024b64": Size(1024, 1024, 1, 64, 25),
    "train2048b16": Size(2048, 2048, 1, 16, 25),
    "infer1536b1": Size(1536, 1536, 1, 1, 50),
    "infer1536b4": Size(1536, 1536, 1, 4, 50),
    "infer256b4": Size(256, 256, 1, 4, 150),
}
SCAN = {
    f"h{hidden}b{batch}": Size(hidden, hidden, 1, batch, 50)
    for hidden in (32, 50, 64, 100, 128, 200, 256, 384, 512, 768, 1024)
    for batch in (1, 4, 8, 32, 64)
}
CELLS = {"b1": Size(128, 256, 1, 1, 100), "b32": Size(128, 256, 1, 32, 100)}


def both_layers(size: Size) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(size.input, size.hidden, size.layers)
    ours = nn.LSTM(size.input, size.hidden, size.layers)
    for name, parameter in theirs.named_parameters():
        setattr(ours, name, parameter)
    return ours, theirs


Forward = Callable[[], torch.Tensor]


def inference(forward: Forward) -> Runner:
    def run() -> None:
        with torch.no_grad():
            forward()

    return run


def training(forward: Forward, parameters: list[torch.nn.Parameter]) -> Runner:
    grad = torch.ones_like(forward())

    def run() -> None:
        torch.autograd.grad(forward(), parameters, grad)

    return run


def verify(ours: Forward, theirs: Forward, parameters: list[torch.nn.Parameter]) -> None:
    a, b = ours(), theirs()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(a)
    for x, y in zip(
        torch.autograd.grad(a, parameters, grad),
        torch.autograd.grad(b, parameters, grad),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3 * y.abs().max().item())


class Report:
    """Prints rows as they come and keeps them."""

    def __init__(self, seconds: float) -> None:
        self.rows: list[dict] = []
        self._seconds = seconds

    def compare(self, name: str, what: str, ours: Runner, theirs: Runner) -> None:
        ours_s, theirs_s = interleaved_medians([ours, theirs], self._seconds)
        ratio = theirs_s / ours_s
        self.rows.append(
            {"name": name, "what": what, "fastconv_ms": ours_s * 1e3, "torch_ms": theirs_s * 1e3,
             "ratio": ratio}
        )  # fmt: skip
        mark = "  slower" if ratio < 1 else ""
        print(
            f"{name:<34} {what:<28} torch {theirs_s * 1e3:9.3f} ms   fastconv {ours_s * 1e3:9.3f} "
            f"ms   {ratio:5.2f}x{mark}",
            flush=True,
        )


def run_sizes(sizes: dict[str, Size], report: Report) -> None:
    for size in sizes.values():
        ours, theirs = both_layers(size)
        x = torch.randn(size.steps, size.batch, size.input)
        parameters = list(theirs.parameters())

        def forward(layer: torch.nn.Module, x: torch.Tensor = x) -> Forward:
            return lambda: layer(x)[0]

        verify(forward(ours), forward(theirs), parameters)
        report.compare(str(size), "inference", inference(forward(ours)), inference(forward(theirs)))
        report.compare(
            str(size), "training", training(forward(ours), parameters),
            training(forward(theirs), parameters),
        )  # fmt: skip


def run_ragged(report: Report, only: list[str] | None) -> None:
    for name in ("h50", "h128", "char"):
        if only and name not in only:
            continue
        size = SIZES[name]
        ours, theirs = both_layers(size)
        x = torch.randn(size.steps, size.batch, size.input)
        generator = torch.Generator().manual_seed(1)
        low = max(1, round(0.14 * size.steps))
        lengths = torch.randint(low, size.steps + 1, (size.batch,), generator=generator)
        lengths[0] = size.steps
        full = lengths.sum().item() / (size.steps * size.batch)
        parameters = list(theirs.parameters())

        def packed(layer: torch.nn.Module, x=x, lengths=lengths) -> torch.Tensor:
            rows = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return pad_packed_sequence(layer(rows)[0], total_length=len(x))[0]

        rows = pack_padded_sequence(x, lengths, enforce_sorted=False)
        forms: dict[str, Forward] = {
            "lengths": lambda ours=ours, x=x, lengths=lengths: ours(x, lengths=lengths)[0],
            "packed": lambda ours=ours, packed=packed: packed(ours),
            "packed before": lambda ours=ours, rows=rows: ours(rows)[0].data,
            "padded": lambda ours=ours, x=x: ours(x)[0],
            "torch packed": lambda theirs=theirs, packed=packed: packed(theirs),
            "torch padded": lambda theirs=theirs, x=x: theirs(x)[0],
        }
        verify(forms["lengths"], forms["torch packed"], parameters)
        verify(forms["packed"], forms["torch packed"], parameters)
        for what, other in (
            ("lengths", "torch packed"), ("packed", "torch packed"), ("lengths", "padded"),
            ("packed before", "padded"),
            ("lengths", "torch padded"),
        ):  # fmt: skip
            for passes, make in (
                ("inference", inference),
                ("training", lambda f, p=parameters: training(f, p)),
            ):
                report.compare(
                    f"{size} {100 * full:.0f} % full", f"{what} vs {other}, {passes}",
                    make(forms[what]), make(forms[other]),
                )  # fmt: skip


def rollout(cell: torch.nn.Module, x: torch.Tensor) -> Forward:
    def forward() -> torch.Tensor:
        h = c = x.new_zeros(x.shape[1], cell.hidden_size)
        for step in x:
            h, c = cell(step, (h, c))
        return h

    return forward


def run_cells(report: Report) -> None:
    for size in CELLS.values():
        torch.manual_seed(0)
        theirs = torch.nn.LSTMCell(size.input, size.hidden)
        ours = nn.LSTMCell(size.input, size.hidden)
        ours.load_state_dict(theirs.state_dict())
        for name, parameter in theirs.named_parameters():
            setattr(ours, name, parameter)
        x = torch.randn(size.steps, size.batch, size.input)
        a, b = rollout(ours, x), rollout(theirs, x)
        parameters = list(theirs.parameters())
        verify(a, b, parameters)
        name = f"LSTMCell I{size.input} H{size.hidden} B{size.batch}"
        report.compare(name, "100 steps, inference", inference(a), inference(b))
        report.compare(
            name, "100 steps, training", training(a, parameters), training(b, parameters)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    groups = ("sizes", "deepbench", "ragged", "cells", "scan")
    parser.add_argument("groups", nargs="*", choices=[*groups, []], default=list(groups[:-1]))
    parser.add_argument("--only", nargs="+", help="names within the groups")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = Report(arguments.seconds)

    def chosen(sizes: dict[str, Size]) -> dict[str, Size]:
        return {k: v for k, v in sizes.items() if not arguments.only or k in arguments.only}

    if "sizes" in arguments.groups:
        run_sizes(chosen(SIZES), report)
    if "deepbench" in arguments.groups:
        run_sizes(chosen(DEEPBENCH), report)
    if "scan" in arguments.groups:
        run_sizes(chosen(SCAN), report)
    if "ragged" in arguments.groups:
        run_ragged(report, arguments.only)
    if "cells" in arguments.groups:
        run_cells(report)
    slower = [f"{r['name']} {r['what']}" for r in report.rows if r["ratio"] < 1]
    print("below 1:", "; ".join(slower) or "none")
    if arguments.json:
        content = {"info": fastconv.runtime.info(), "rows": report.rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
