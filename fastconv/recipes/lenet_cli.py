# SPDX-License-Identifier: MIT
"""The options of ``fastconv train lenet5`` and ``fastconv predict lenet5``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fastconv.models.lenet import ACTIVATIONS, BACKENDS, POOLS
from fastconv.recipes.data import DATASETS
from fastconv.recipes.errors import UserError
from fastconv.recipes.lenet import train_lenet5
from fastconv.recipes.lenet_config import (
    DEFAULT_EPOCHS,
    DEFAULT_LR,
    OPTIMIZERS,
    LeNetConfig,
    option_name,
)
from fastconv.recipes.options import MAX_THREADS, check_integers, set_threads
from fastconv.recipes.predict import predict_lenet5

_TRAIN_DESCRIPTION = """\
Train LeNet-5 on handwritten digits and test it. By default the data are the 1,797 digits inside
scikit-learn, scaled to 28x28: 1257 to train on, 180 for validation, 360 to test. The run folder
gets metrics.csv, config.json, summary.json, best.pt, last.pt and figures as PNG. The weights of the
epoch with the lowest validation loss are tested. Ctrl-C leaves a run that --resume goes on with.
torchrun --nproc-per-node 2 -m fastconv train lenet5 trains in two processes, each on its share of
every batch."""

_PREDICT_DESCRIPTION = """\
Classify image files and print the probability of each class. An image is turned grey, padded to a
square, resized to 28x28, and inverted when its border is light. The digit should fill the
picture."""

_BELONGS_TO = {
    "momentum": ("optimizer", "sgd"),
    "data_dir": ("data", "mnist"),
    "download": ("data", "mnist"),
}


def add_train_parser(commands: Any) -> None:
    """Add ``lenet5`` to the subcommands of ``train``."""
    parser = commands.add_parser(
        "lenet5", help="LeNet-5 on handwritten digits", description=_TRAIN_DESCRIPTION
    )
    parser.set_defaults(run=_run_train)
    _add_data_options(parser.add_argument_group("data"))
    _add_network_options(parser.add_argument_group("network"))
    _add_optimisation_options(parser.add_argument_group("training"))
    group = parser.add_argument_group("run")
    add = _adder(group)
    add("--seed", type=int, metavar="N", help="seed of weights, order, shifts and dropout")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: torch's choice, with --resume the run's)",
    )
    add("--backend", choices=BACKENDS, help="whose convolution and pooling layers to use")
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="run folder (default: runs/lenet5-N, with --resume the checkpoint's folder)",
    )
    group.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="go on from this checkpoint, with its settings; --epochs, --patience, --threads, "
        "--backend, --data-dir and --download may be given anew",
    )


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--data", choices=DATASETS, help="what to train on")
    add("--data-dir", metavar="DIR", help="directory of the four MNIST files, gzipped or not")
    add("--download", action="store_true", help="fetch MNIST into --data-dir with torchvision")
    add("--split-seed", type=int, metavar="N", help="seed of the split into parts")
    add("--shift", type=int, metavar="N", help="move training images by up to N pixels, 0 for none")


def _add_network_options(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--activation", choices=ACTIVATIONS, help="activation function")
    add("--pool", choices=POOLS, help="pooling")
    add("--dropout", type=float, metavar="P", help="dropout after fc1 and fc2")


def _add_optimisation_options(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    epochs = ", ".join(f"{count} for {name}" for name, count in DEFAULT_EPOCHS.items())
    rates = ", ".join(f"{rate} for {name}" for name, rate in DEFAULT_LR.items())
    add("--epochs", type=int, metavar="N", help=f"epochs in all (default: {epochs})")
    add("--batch-size", type=int, metavar="N", help="images in a batch")
    add("--optimizer", choices=OPTIMIZERS, help="optimizer")
    add("--lr", type=float, metavar="X", help=f"learning rate (default: {rates})")
    add("--lr-decay", type=float, metavar="X", help="factor of the learning rate after each epoch")
    add("--momentum", type=float, metavar="X", help="momentum of sgd")
    add("--weight-decay", type=float, metavar="X", help="L2 penalty, as the optimizer defines it")
    add("--l1", type=float, metavar="X", help="factor of the sum of absolute weights in the loss")
    add(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N epochs without a lower validation loss, 0 never",
    )


def _adder(group: argparse._ArgumentGroup) -> Any:
    """``add_argument`` that leaves out what was not given and shows the default in the help."""
    defaults = {name: field.default for name, field in LeNetConfig.__dataclass_fields__.items()}

    def add(option: str, **kwargs: Any) -> None:
        default = defaults[option.removeprefix("--").replace("-", "_")]
        if default is not None and default is not False:
            kwargs["help"] += f" (default: {default})"
        group.add_argument(option, default=argparse.SUPPRESS, **kwargs)

    return add


def _run_train(arguments: argparse.Namespace) -> int:
    names = LeNetConfig.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if arguments.resume is None:
        for name, (other, needed) in _BELONGS_TO.items():
            if name in given and given.get(other) != needed:
                raise UserError(f"{option_name(name)} needs {option_name(other)} {needed}")
    result = train_lenet5(given, out=arguments.out, resume=arguments.resume)
    if result is None:  # another process of torchrun prints it
        return 0
    print(
        f"test accuracy {100 * result.test_accuracy:.2f} % ({result.correct} of {result.tested}), "
        f"{result.epochs} epochs in {result.train_seconds:.1f} s, "
        f"{result.images_per_s:,.0f} images/s, total time {result.total_seconds:.1f} s, "
        f"run folder {result.folder}"
    )
    return 0


def add_predict_parser(commands: Any) -> None:
    """Add ``lenet5`` to the subcommands of ``predict``."""
    parser = commands.add_parser(
        "lenet5", help="classify image files with LeNet-5", description=_PREDICT_DESCRIPTION
    )
    parser.set_defaults(run=_run_predict)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt or last.pt of a run"
    )
    parser.add_argument("--backend", choices=BACKENDS, help="whose layers (default: the run's)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image file")


def _run_predict(arguments: argparse.Namespace) -> int:
    check_integers(arguments, ("threads", 1, MAX_THREADS))
    set_threads(arguments.threads)
    found = predict_lenet5(arguments.checkpoint, arguments.images, backend=arguments.backend)
    if arguments.json:
        rows = [
            {"image": str(p.path), "label": p.label, "probabilities": list(p.probabilities)}
            for p in found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for prediction in found:
        shares = "  ".join(f"{k}:{p:.3f}" for k, p in enumerate(prediction.probabilities))
        print(f"{prediction.path}: {prediction.label}   {shares}")
    return 0
