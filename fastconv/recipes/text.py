# SPDX-License-Identifier: MIT
"""The recipe ``train text``: a character-level LSTM, and the text it writes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv import optim
from fastconv.models import CharLSTM
from fastconv.recipes.checkpoint import load_checkpoint, save_checkpoint
from fastconv.recipes.errors import TrainingDivergedError, UserError
from fastconv.recipes.options import (
    MAX_COUNT,
    MAX_LAYERS,
    MAX_SEED,
    MAX_THREADS,
    MAX_UNITS,
    check_integers,
    check_option,
    set_threads,
)
from fastconv.recipes.run_folder import (
    BEST,
    CONFIG,
    SUMMARY,
    create_run_folder,
    write_json,
    write_metrics,
)
from fastconv.recipes.text_data import Text, columns, encode, load_text, ngram_bits

RECIPE = "text"
NGRAM = 5


@dataclass(frozen=True)
class TextConfig:
    """Settings of :func:`train_text`.

    Raises:
        UserError: for a value that cannot be used, with the option, what was expected, what came.
    """

    text: str | None = None
    epochs: int = 12
    batch_size: int = 64
    steps: int = 128
    embedding: int = 64
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.2
    lr: float = 0.004
    clip: float = 1.0
    held_out_share: float = 0.1
    sample: int = 200
    seed: int = 0
    threads: int | None = None
    backend: str = "fastconv"

    def __post_init__(self) -> None:
        check_integers(
            self,
            ("epochs", 1, MAX_COUNT),
            ("batch_size", 1, MAX_COUNT),
            ("steps", 1, MAX_COUNT),
            ("embedding", 1, MAX_UNITS),
            ("hidden", 1, MAX_UNITS),
            ("layers", 1, MAX_LAYERS),
            ("sample", 0, MAX_COUNT),
            ("seed", 0, MAX_SEED),
            ("threads", 1, MAX_THREADS),
        )
        for name in ("lr", "clip"):
            value = getattr(self, name)
            check_option(self, name, "a number above 0", math.isfinite(value) and value > 0)
        check_option(self, "dropout", "a number from 0 to below 1", 0 <= self.dropout < 1)
        check_option(
            self, "held_out_share", "a number above 0 and below 1", 0 < self.held_out_share < 1
        )
        check_option(self, "backend", "fastconv or torch", self.backend in ("fastconv", "torch"))


@dataclass(frozen=True)
class TextResult:
    """What a run came to; bits are per character of the held-out part."""

    folder: Path
    bits: float
    ngram_bits: float
    best_epoch: int
    characters_per_s: float
    seconds: float


def build_model(config: TextConfig, vocabulary: int) -> CharLSTM:
    """The network of a run, with weights drawn from torch's generator."""
    return CharLSTM(
        vocabulary,
        config.embedding,
        config.hidden,
        config.layers,
        config.dropout,
        config.backend,
    )


def train_text(
    config: TextConfig, *, out: Path | None = None, say: Callable[[str], None] = print
) -> TextResult:
    """Train by truncated back-propagation through time, carrying the state from part to part.

    Args:
        config: the settings.
        out: run folder; None takes a new one under ``runs``.
        say: takes each line of progress.

    Raises:
        UserError: for settings or a text that cannot be used.
        TrainingDivergedError: when the loss is no longer finite.
    """
    start = time.perf_counter()
    set_threads(config.threads)
    text = load_text(Path(config.text) if config.text else None, config.held_out_share)
    inputs = columns(text.train, config.batch_size)
    if len(text.held_out) < 2:
        raise UserError(
            f"expected --held-out-share to leave 2 characters to test on, got {len(text.held_out)}"
        )
    if len(inputs) < 2:
        raise UserError(
            f"expected a text longer than --batch-size {config.batch_size}, got "
            f"{len(text.train)} characters to train on"
        )
    baseline = ngram_bits(text, NGRAM)
    say(
        f"{len(text.train):,} characters to train on, {len(text.held_out):,} held out, "
        f"{len(text.characters)} different; {NGRAM}-gram model: {baseline:.3f} bits per character"
    )
    folder = create_run_folder(out, RECIPE)
    write_json(folder / CONFIG, asdict(config))
    torch.manual_seed(config.seed)
    model = build_model(config, len(text.characters))
    optimizer = optim.Adam(model.parameters(), lr=config.lr, max_grad_norm=config.clip)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs, config.lr / 50)
    history: list[dict[str, float]] = []
    best_bits, best_epoch, trained, busy = math.inf, 0, 0, 0.0
    best: dict[str, Any] = {}
    for epoch in range(1, config.epochs + 1):
        began = time.perf_counter()
        train_bits = _train_epoch(model, optimizer, inputs, config.steps)
        seconds = time.perf_counter() - began
        schedule.step()
        trained, busy = trained + inputs.numel(), busy + seconds
        bits = evaluate(model, text, config.steps)
        if not (math.isfinite(train_bits) and math.isfinite(bits)):
            raise TrainingDivergedError(
                f"training diverged in epoch {epoch}: expected finite bits per character, got "
                f"{train_bits} in training and {bits} held out; try a lower --lr"
            )
        history.append({"epoch": epoch, "train_bits": train_bits, "held_out_bits": bits,
                        "seconds": seconds})  # fmt: skip
        say(
            f"epoch {epoch}/{config.epochs}: {train_bits:.3f} bits per character, held out "
            f"{bits:.3f}, {inputs.numel() / seconds:,.0f} characters/s"
        )
        if bits < best_bits:
            best_bits, best_epoch = bits, epoch
            best = copy.deepcopy(model.state_dict())
            _save(folder, config, text, best)
        write_metrics(folder, history)
        if config.sample:
            say(generate(model, text.characters, "\n", config.sample, 0.7, config.seed).strip())
    model.load_state_dict(best)
    result = TextResult(
        folder=folder,
        bits=best_bits,
        ngram_bits=baseline,
        best_epoch=best_epoch,
        characters_per_s=trained / busy,
        seconds=time.perf_counter() - start,
    )
    write_json(folder / SUMMARY, {**asdict(result), "folder": str(folder)})
    return result


def _save(folder: Path, config: TextConfig, text: Text, weights: dict[str, Any]) -> None:
    content = {"config": asdict(config), "characters": text.characters, "model": weights}
    save_checkpoint(folder / BEST, RECIPE, content)


def _train_epoch(
    model: CharLSTM, optimizer: torch.optim.Optimizer, inputs: Tensor, steps: int
) -> float:
    model.train()
    state = None
    total, count = 0.0, 0
    for begin in range(0, len(inputs) - 1, steps):
        part = inputs[begin : begin + steps + 1]
        optimizer.zero_grad(set_to_none=True)
        scores, state = model(part[:-1], state)
        loss = F.cross_entropy(scores.flatten(0, 1), part[1:].flatten())
        loss.backward()
        optimizer.step()
        state = (state[0].detach(), state[1].detach())
        total += loss.item() * part[1:].numel()
        count += part[1:].numel()
    return total / count / math.log(2)


def evaluate(model: CharLSTM, text: Text, steps: int) -> float:
    """Bits per character of the held-out part, read in one piece after the end of the other."""
    model.eval()
    context = min(len(text.train), 512)
    whole = torch.cat([text.train[-context:], text.held_out])
    total, state = 0.0, None
    with torch.no_grad():
        if context > 1:
            _, state = model(whole[: context - 1, None], None)
        for begin in range(context - 1, len(whole) - 1, 16 * steps):
            part = whole[begin : begin + 16 * steps + 1]
            scores, state = model(part[:-1, None], state)
            total += float(F.cross_entropy(scores[:, 0], part[1:], reduction="sum"))
    return total / len(text.held_out) / math.log(2)


def generate(
    model: CharLSTM, characters: str, prompt: str, length: int, temperature: float, seed: int
) -> str:
    """Go on after ``prompt``, drawing one character at a time.

    Args:
        model: a trained network; it is left in evaluation mode.
        characters: the characters that its numbers stand for.
        prompt: text to go on from, at least one character, all of them known.
        length: characters to write.
        temperature: above 0; small ones make the likeliest characters likelier.
        seed: of the draw; torch's global generator is left alone.

    Raises:
        UserError: for an argument outside these ranges.
    """
    if not prompt:
        raise UserError("expected --prompt of at least one character, got none")
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"expected --temperature above 0, got {temperature}")
    if prompt == "\n" and "\n" not in characters:
        prompt = characters[0]
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    step, state = encode(prompt, characters)[:, None], None
    written = []
    with torch.no_grad():
        for _ in range(length):
            scores, state = model(step, state)
            odds = (scores[-1, 0] / temperature).softmax(0)
            step = torch.multinomial(odds, 1, generator=generator)[:, None]
            written.append(characters[int(step)])
    return "".join(written)


def load_model(path: Path) -> tuple[CharLSTM, str]:
    """The network and characters of a checkpoint that ``train text`` wrote.

    Raises:
        UserError: when the file is missing, damaged or of another recipe.
    """
    content = load_checkpoint(path, RECIPE)
    try:
        config = TextConfig(**content["config"])
        characters = str(content["characters"])
        model = build_model(config, len(characters))
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: the checkpoint does not fit this version: {reason}") from error
    return model, characters
