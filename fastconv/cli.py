# SPDX-License-Identifier: MIT
"""The command line: ``fastconv`` and ``python -m fastconv``.

A command is one function ``_add_<name>(commands)`` that adds its parser and sets ``run``, a
function of the parsed arguments that returns the exit code. To add a command, write that function
and put it into ``_COMMANDS``. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted; a failure
is one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastconv import runtime
from fastconv.recipes import forecast_cli, lenet_cli, text_cli
from fastconv.recipes.errors import RunInterruptedError, TrainingDivergedError, UserError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose options cannot be abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print one line, ``fastconv <command>: message``, and exit with 2."""
        command = " ".join(self.prog.split()[:2])
        self.exit(EXIT_BAD_INPUT, f"{command}: {message}; see {self.prog} --help\n")


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, instruction sets, threads",
        description="Print the versions of fastconv and torch, the compiler, the CPU instruction "
        "sets, threads, the OpenMP runtime and CUDA.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=_run_info)


def _run_info(arguments: argparse.Namespace) -> int:
    info = runtime.info()
    if arguments.json:
        print(json.dumps(info, indent=2))
        return 0
    width = max(len(key) for key in info) + 1
    for key, value in info.items():
        items = value if isinstance(value, list) else [] if value is None else [value]
        text = ", ".join(str(item) for item in items) or "none"
        print(f"{key + ':':<{width}} {text}")
    return 0


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train", help="train a network", description="Train one of fastconv's networks."
    )
    networks = parser.add_subparsers(metavar="NETWORK", required=True)
    lenet_cli.add_train_parser(networks)
    forecast_cli.add_train_parser(networks)
    text_cli.add_train_parser(networks)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="use a trained network",
        description="Use a network that 'fastconv train' has trained.",
    )
    lenet_cli.add_predict_parser(parser.add_subparsers(metavar="NETWORK", required=True))


_COMMANDS: tuple[Callable[[Any], None], ...] = (
    _add_info,
    _add_train,
    _add_predict,
    text_cli.add_generate_parser,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="fastconv",
        description="Hand-written C++ kernels as drop-in layers for PyTorch.",
    )
    version = f"fastconv {runtime.info()['version']}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for add in _COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program name; None takes those of the process.

    Returns:
        The exit code. Bad options leave through ``SystemExit`` with code 2, as argparse does.
    """
    arguments = build_parser().parse_args(argv)
    name = f"fastconv {arguments.command}"
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(name, error, EXIT_BAD_INPUT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (TrainingDivergedError, OSError) as error:
        return _fail(name, error, EXIT_FAILED)
    except RunInterruptedError as error:
        return _fail(name, error, EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _fail(name, "interrupted", EXIT_INTERRUPTED)


def _fail(name: str, error: object, code: int) -> int:
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code
