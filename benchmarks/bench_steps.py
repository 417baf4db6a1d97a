# SPDX-License-Identifier: MIT
"""Times whole LeNet-5 training steps and inference calls against torch and other frameworks.

    python benchmarks/bench_steps.py --json benchmarks/results/steps.json
    python benchmarks/bench_steps.py --activation tanh --pool avg --batches 64 --only torch
    python benchmarks/bench_steps.py --where

A training step is zero_grad, forward, cross entropy, backward and Adam. Every side starts from the
same weights; its first loss (or its scores) is checked against torch's before it is timed, and all
sides take turns. Peers that are not installed are listed as missing, never left out silently.
``--where`` prints where the time of a step goes instead, per operator, for torch and fastconv.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from compare import Runner
from torch.nn.functional import cross_entropy

import fastconv
from fastconv.models import LeNet5

LEARNING_RATE = 1e-3


class Missing(Exception):
    """A peer that cannot take part, and why."""


@dataclass(frozen=True)
class Task:
    batch: int
    activation: str
    pool: str
    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Row:
    what: str
    batch: int
    threads: int
    peer: str
    milliseconds: float
    fastconv_milliseconds: float
    ratio: float


def make_task(batch: int, activation: str, pool: str) -> Task:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 1, 28, 28, generator=generator)
    return Task(batch, activation, pool, images, torch.randint(10, (batch,), generator=generator))


def make_model(task: Task, backend: str, channels_last: bool = False) -> LeNet5:
    torch.manual_seed(0)
    model = LeNet5(activation=task.activation, pool=task.pool, backend=backend)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def fastconv_adam(parameters: Any) -> torch.optim.Optimizer:
    """fastconv's Adam where this build has one, else torch's fused Adam."""
    adam = getattr(getattr(fastconv, "optim", None), "Adam", None)
    return (
        torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
        if adam is None
        else adam(parameters, lr=LEARNING_RATE)
    )


# --- One training step: what it does, and the loss it had ----------------------------------------

Step = Callable[[], float]


def torch_step(task: Task, backend: str, tuned: bool, compiled: bool = False) -> Step:
    channels_last = tuned and backend == "torch" and not compiled
    model = make_model(task, backend, channels_last)
    if backend == "fastconv":
        optimizer = fastconv_adam(model.parameters())
    else:
        fused = True if tuned else None
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=fused)
    images = task.images
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    run: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(run(images), task.labels)
        loss.backward()
        optimizer.step()
        return loss  # type: ignore[return-value]

    return step


def jax_parts(task: Task) -> tuple[Any, Any, Any, Callable[..., Any]]:
    try:
        jax = importlib.import_module("jax")
    except ImportError as error:
        raise Missing(f"jax is not installed ({error})") from None
    numpy, lax = jax.numpy, jax.lax
    model = make_model(task, "torch")
    parameters = {name: numpy.asarray(p.detach().numpy()) for name, p in model.named_parameters()}
    activations = {
        "relu": jax.nn.relu,
        "tanh": numpy.tanh,
        "sigmoid": jax.nn.sigmoid,
        "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
    }
    activation = activations[task.activation]

    def block(x: Any, p: dict[str, Any], name: str, padding: int) -> Any:
        x = lax.conv_general_dilated(x, p[f"{name}.weight"], (1, 1), [(padding, padding)] * 2)
        x = activation(x + p[f"{name}.bias"][None, :, None, None])
        window = ((1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        if task.pool == "max":
            return lax.reduce_window(x, -numpy.inf, lax.max, *window)
        return lax.reduce_window(x, 0.0, lax.add, *window) / 4

    def scores(p: dict[str, Any], x: Any) -> Any:
        x = block(block(x, p, "conv1", 2), p, "conv2", 0).reshape(x.shape[0], -1)
        for layer in ("fc1", "fc2"):
            x = activation(x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"])
        return x @ p["fc3.weight"].T + p["fc3.bias"]

    return jax, numpy, parameters, scores


def jax_step(task: Task) -> Step:
    jax, numpy, parameters, scores = jax_parts(task)
    images, labels = numpy.asarray(task.images.numpy()), numpy.asarray(task.labels.numpy())

    def loss(p: dict[str, Any]) -> Any:
        return -jax.nn.log_softmax(scores(p, images))[numpy.arange(task.batch), labels].mean()

    @jax.jit
    def update(p: Any, m: Any, v: Any, t: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(p)
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, grads)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g * g, v, grads)
        scale = LEARNING_RATE * numpy.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        p = jax.tree.map(lambda a, b, c: a - scale * b / (numpy.sqrt(c) + 1e-8), p, m, v)
        return value, p, m, v

    zeros = jax.tree.map(numpy.zeros_like, parameters)
    state = [parameters, zeros, zeros, 0]

    def step() -> float:
        state[3] += 1
        value, *state[:3] = update(*state[:3], float(state[3]))
        return float(value)

    return step


# --- One inference call: what it does, and the scores --------------------------------------------

Infer = Callable[[], torch.Tensor]


def torch_infer(task: Task, backend: str, tuned: bool, compiled: bool = False) -> Infer:
    channels_last = tuned and backend == "torch" and not compiled
    model = make_model(task, backend, channels_last).eval()
    images = task.images
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    run: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if compiled else model
    mode = torch.inference_mode if tuned else torch.no_grad

    def infer() -> torch.Tensor:
        with mode():
            return run(images)

    return infer


def jax_infer(task: Task) -> Infer:
    jax, numpy, parameters, scores = jax_parts(task)
    images, run = numpy.asarray(task.images.numpy()), jax.jit(scores)
    return lambda: torch.from_numpy(jax.device_get(run(parameters, images)).copy())


def exported(task: Task, path: Path) -> Path:
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise Missing(f"the ONNX exporter is not installed ({error})") from None
    torch.onnx.export(make_model(task, "torch").eval(), (task.images,), path, verbose=False)
    return path


def onnxruntime_infer(task: Task) -> Infer:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise Missing(f"onnxruntime is not installed ({error})") from None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = exported(task, Path(folder) / "lenet.onnx")
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: task.images.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino_infer(task: Task) -> Infer:
    try:
        openvino = importlib.import_module("openvino")
    except ImportError as error:
        raise Missing(f"openvino is not installed ({error})") from None
    model = openvino.convert_model(make_model(task, "torch").eval(), example_input=task.images)
    # Left alone, it computes in bfloat16 on machines that have it.
    config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(model, "CPU", config)
    return lambda: torch.from_numpy(compiled(task.images.numpy())[0].copy())


STEPS: dict[str, Callable[[Task], Step]] = {
    "fastconv": lambda task: torch_step(task, "fastconv", tuned=True),
    "torch eager": lambda task: torch_step(task, "torch", tuned=False),
    "torch tuned": lambda task: torch_step(task, "torch", tuned=True),
    "torch.compile": lambda task: torch_step(task, "torch", tuned=True, compiled=True),
    "jax": jax_step,
}
INFERENCES: dict[str, Callable[[Task], Infer]] = {
    "fastconv": lambda task: torch_infer(task, "fastconv", tuned=True),
    "torch eager": lambda task: torch_infer(task, "torch", tuned=False),
    "torch tuned": lambda task: torch_infer(task, "torch", tuned=True),
    "torch.compile": lambda task: torch_infer(task, "torch", tuned=True, compiled=True),
    "jax": jax_infer,
    "onnxruntime": onnxruntime_infer,
    "openvino": openvino_infer,
}
TASKS: dict[str, dict[str, Callable[[Task], Callable[[], Any]]]] = {
    "training step": STEPS,
    "inference": INFERENCES,
}


def medians_in_turns(runs: list[Runner], seconds: float, least: int = 5) -> list[float]:
    """Median seconds of each run, all in turns. A turn starts with an untimed call, which pays for
    what the side before it left behind: caches, and thread pools that still spin."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    stop = time.perf_counter() + seconds
    while len(times[0]) < least or time.perf_counter() < stop:
        for slot, run in enumerate(runs):
            run()
            start = time.perf_counter()
            run()
            times[slot].append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


def first_result(run: Callable[[], Any]) -> torch.Tensor:
    return torch.as_tensor(run()).detach()


def make_sides(what: str, task: Task, only: str) -> tuple[dict[str, Runner], list[str]]:
    """Every side that can take part, verified by its first result, and why the others cannot."""
    sides: dict[str, Runner] = {}
    missing = []
    wanted = first_result(TASKS[what]["torch eager"](task))
    for name, make in TASKS[what].items():
        if only and name != "fastconv" and only not in name:
            continue
        try:
            side = make(task)
        except Missing as reason:
            missing.append(f"{name}: {reason}")
            continue
        torch.testing.assert_close(first_result(side), wanted, rtol=1e-4, atol=1e-4)
        sides[name] = side
    return sides, missing


# --- Where the time of a step goes ---------------------------------------------------------------


def where_the_time_goes(task: Task) -> None:
    for name in ("torch eager", "torch tuned", "fastconv"):
        step = STEPS[name](task)
        for _ in range(10):
            step()
        with torch.profiler.profile() as profile:
            for _ in range(30):
                step()
        rows = [row for row in profile.key_averages() if row.self_cpu_time_total > 0]
        total = sum(row.self_cpu_time_total for row in rows)
        print(f"\n{name}, batch {task.batch}: share of the profiled time of a step")
        for row in sorted(rows, key=lambda row: -row.self_cpu_time_total)[:12]:
            key = row.key.replace("(anonymous namespace)::", "").split("evaluate_function: ")[-1]
            print(f"  {row.self_cpu_time_total / total:6.1%}  {key[:80]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--what", choices=list(TASKS), nargs="+", default=list(TASKS))
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--pool", default="max")
    parser.add_argument("--only", default="", help="peers whose name contains this")
    parser.add_argument("--seconds", type=float, default=2.0, help="timing budget per comparison")
    parser.add_argument("--where", action="store_true", help="print where the time goes instead")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows: list[Row] = []
    missing: dict[str, None] = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch in args.batches:
            task = make_task(batch, args.activation, args.pool)
            if args.where:
                where_the_time_goes(task)
                continue
            for what in args.what:
                sides, absent = make_sides(what, task, args.only)
                missing.update(dict.fromkeys(absent))
                times = dict(
                    zip(sides, medians_in_turns([*sides.values()], args.seconds), strict=True)
                )
                ours = times.pop("fastconv")
                for peer, seconds in times.items():
                    rows.append(Row(what, batch, threads, peer, seconds * 1e3, ours * 1e3,
                                    seconds / ours))  # fmt: skip
                    print(
                        f"{what:14} batch {batch:4} threads {threads} {peer:14} "
                        f"{seconds * 1e3:8.3f} ms, fastconv {ours * 1e3:8.3f} ms, "
                        f"{seconds / ours:5.2f}x",
                        flush=True,
                    )
    for reason in missing:
        print(f"missing: {reason}")
    if args.json:
        facts = {
            "info": fastconv.runtime.info(),
            "optimizer": type(fastconv_adam([torch.zeros(1)])).__module__,
            "activation": args.activation,
            "pool": args.pool,
            "missing": list(missing),
            "rows": [asdict(row) for row in rows],
        }
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
