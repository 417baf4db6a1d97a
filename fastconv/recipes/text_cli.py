# SPDX-License-Identifier: MIT
"""The options of ``fastconv train text`` and ``fastconv generate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastconv.recipes.distributed import require_one_process
from fastconv.recipes.options import (
    MAX_COUNT,
    MAX_SEED,
    MAX_THREADS,
    add_options,
    check_integers,
    given_options,
    set_threads,
)
from fastconv.recipes.text import NGRAM, TextConfig, generate, load_model, train_text

_DESCRIPTION = f"""\
Train an LSTM to predict a text character by character. By default the text is the documentation of
Python's topics, which every installation of Python has. Prints bits per character of the held-out
last part of the text, beside those of a {NGRAM}-gram model, and samples while it trains. The run
folder gets metrics.csv, config.json, summary.json and best.pt, which 'fastconv generate' reads."""

_HELP = {
    "text": ("FILE", "a UTF-8 text to learn instead"),
    "epochs": ("N", "times through the text"),
    "batch_size": ("N", "places of the text that are read at once"),
    "steps": ("N", "characters between two steps of the optimizer, at each place"),
    "embedding": ("N", "values that a character becomes"),
    "hidden": ("N", "units of each layer"),
    "layers": ("N", "layers of the LSTM"),
    "dropout": ("P", "dropout between layers and before the output"),
    "lr": ("X", "learning rate of Adam at the start; it falls to a fiftieth"),
    "clip": ("X", "largest norm of the gradient"),
    "held_out_share": ("X", "last part of the text, to test on"),
    "sample": ("N", "characters to write after each epoch, 0 for none"),
    "seed": ("N", "seed of weights, dropout and samples"),
    "threads": ("N", "CPU threads (default: torch's choice)"),
    "backend": ("NAME", "fastconv or torch: whose LSTM"),
}
_TYPES = {"text": str, "backend": str}


def add_train_parser(commands: Any) -> None:
    """Add ``text`` to the subcommands of ``train``."""
    parser = commands.add_parser(
        "text", help="an LSTM that predicts characters", description=_DESCRIPTION
    )
    parser.set_defaults(run=_run_train)
    add_options(parser, TextConfig, _HELP, _TYPES)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/text-N)")


def _run_train(arguments: argparse.Namespace) -> int:
    require_one_process("train text")
    given = given_options(arguments, TextConfig)
    result = train_text(TextConfig(**given), out=arguments.out, say=_say)
    print(
        f"held out: {result.bits:.3f} bits per character (epoch {result.best_epoch}), {NGRAM}-gram "
        f"model {result.ngram_bits:.3f}; {result.characters_per_s:,.0f} characters/s, total time "
        f"{result.seconds:.1f} s, run folder {result.folder}"
    )
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def add_generate_parser(commands: Any) -> None:
    """Add the command ``generate``."""
    parser = commands.add_parser(
        "generate",
        help="write text with a trained network",
        description="Write text with a network that 'fastconv train text' has trained.",
    )
    parser.set_defaults(run=_run_generate)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt of a run")
    add("--prompt", default="\n", metavar="TEXT", help="text to go on from (default: a new line)")
    add("--length", type=int, default=400, metavar="N", help="characters to write (default: 400)")
    add("--temperature", type=float, default=0.7, metavar="X",
        help="how freely to draw, above 0 (default: 0.7)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="seed of the draw (default: 0)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")


def _run_generate(arguments: argparse.Namespace) -> int:
    check_integers(
        arguments, ("length", 1, MAX_COUNT), ("seed", 0, MAX_SEED), ("threads", 1, MAX_THREADS)
    )
    set_threads(arguments.threads)
    model, characters = load_model(arguments.checkpoint)
    prompt = arguments.prompt
    print(
        prompt
        + generate(
            model, characters, prompt, arguments.length, arguments.temperature, arguments.seed
        )
    )
    return 0
