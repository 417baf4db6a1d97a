# SPDX-License-Identifier: MIT
"""What ``fastconv.accelerate`` did to a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Swapped:
    """A layer that runs on fastconv's operators."""

    name: str  # as in model.named_modules()
    type: str


@dataclass(frozen=True)
class Fused:
    """Layers that run as one operator whenever nothing stands between them."""

    name: str  # of the nn.Sequential, or of the convolution
    layers: tuple[str, ...]  # names of the fused layers
    types: tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """A module that stays on torch, and why."""

    name: str
    type: str
    reason: str


@dataclass
class Report:
    """What was swapped, what was fused, what was left and why; ``str()`` is a readable summary.

    Attributes:
        swapped: layers that run on fastconv's operators.
        fused: chains of layers that run as one operator.
        left: layers that stay on torch.
        optimizer: what became of the optimizer, in words; None when none was given.
    """

    swapped: list[Swapped] = field(default_factory=list)
    fused: list[Fused] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    optimizer: str | None = None

    def __str__(self) -> str:
        lines = [f"fastconv runs {_counted(entry.type for entry in self.swapped) or 'no layer'}"]
        fused = Counter(" + ".join(entry.types) for entry in self.fused)
        lines += [f"  fused: {count} x {types}" for types, count in fused.items()]
        reasons: dict[str, list[Left]] = {}
        for entry in self.left:
            reasons.setdefault(entry.reason, []).append(entry)
        for reason, entries in reasons.items():
            names = [entry.name or "(the model)" for entry in entries]
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            kinds = _counted(entry.type for entry in entries)
            lines.append(f"  left on torch: {kinds} ({shown}): {reason}")
        if self.optimizer is not None:
            lines.append(f"  optimizer: {self.optimizer}")
        return "\n".join(lines)


def _counted(types: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(types).items())
