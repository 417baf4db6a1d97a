# SPDX-License-Identifier: MIT
"""Text as numbers, and an n-gram model of it to compare with."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastconv.recipes.errors import UserError

LEAST_CHARACTERS = 10_000


@dataclass(frozen=True)
class Text:
    """A text cut into a part to train on and the part after it, held out.

    Attributes:
        characters: all that occur, in the order of their numbers.
        train, held_out: int64 ``[length]`` numbers of characters.
    """

    characters: str
    train: Tensor
    held_out: Tensor


def load_text(path: Path | None, held_out_share: float) -> Text:
    """Read a UTF-8 file, or the documentation topics of Python's standard library.

    Raises:
        UserError: when the file cannot be read, or is shorter than 10,000 characters.
    """
    name, content = (str(path), _read(path)) if path is not None else _python_topics()
    if len(content) < LEAST_CHARACTERS:
        raise UserError(
            f"{name}: expected at least {LEAST_CHARACTERS} characters, got {len(content)}"
        )
    characters = "".join(sorted(set(content)))
    numbers = encode(content, characters)
    cut = round(len(numbers) * (1 - held_out_share))
    return Text(characters, numbers[:cut], numbers[cut:])


def encode(text: str, characters: str) -> Tensor:
    """Numbers of characters.

    Raises:
        UserError: for a character that is not among ``characters``.
    """
    number = {character: i for i, character in enumerate(characters)}
    unknown = sorted(set(text) - set(characters))
    if unknown:
        raise UserError(
            f"expected characters of the text that was learned, got {''.join(unknown)!r}"
        )
    return torch.tensor([number[character] for character in text], dtype=torch.int64)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a text file in UTF-8") from error


def _python_topics() -> tuple[str, str]:
    from pydoc_data import topics

    return "pydoc_data.topics", "\n".join(topics.topics[key] for key in sorted(topics.topics))


def ngram_bits(text: Text, order: int = 5) -> float:
    """Bits per character of the held-out part under an n-gram model of the training part.

    Contexts of up to ``order - 1`` characters, interpolated after Witten and Bell (1991): a longer
    context counts the more, the fewer different characters followed it.
    """
    counts: list[defaultdict[tuple[int, ...], defaultdict[int, int]]] = [
        defaultdict(lambda: defaultdict(int)) for _ in range(order)
    ]
    train = text.train.tolist()
    for i, character in enumerate(train):
        for n in range(min(order, i + 1)):
            counts[n][tuple(train[i - n : i])][character] += 1
    totals = [{context: sum(c.values()) for context, c in level.items()} for level in counts]
    everything = train + text.held_out.tolist()
    bits = 0.0
    for i in range(len(train), len(everything)):
        probability = 1 / len(text.characters)
        for n in range(order):
            context = tuple(everything[i - n : i])
            followers = counts[n].get(context)
            if followers is None:
                break
            kinds, total = len(followers), totals[n][context]
            seen = followers.get(everything[i], 0)
            probability = (seen + kinds * probability) / (total + kinds)
        bits -= math.log2(probability)
    return bits / len(text.held_out)


def columns(numbers: Tensor, batch: int) -> Tensor:
    """The text as ``[steps, batch]``: each column goes on where it stopped in the row before."""
    steps = len(numbers) // batch
    return numbers[: steps * batch].view(batch, steps).t().contiguous()
