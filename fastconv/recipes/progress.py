# SPDX-License-Identifier: MIT
"""The progress bar of a training run."""

from __future__ import annotations

from typing import Any

from fastconv.recipes.errors import require_packages

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}{postfix}, {remaining} left"


class ProgressBar:
    """One bar over all epochs on stderr, with loss, accuracy and images/s; silent off a terminal.

    Args:
        samples: samples in one epoch.
        epochs: epochs of the whole run.
        done: epochs already done, for a resumed run.
        unit: what a sample is called.
        drawn: False draws nothing, on a terminal neither.
    """

    def __init__(
        self,
        samples: int,
        epochs: int,
        done: int = 0,
        unit: str = "images",
        drawn: bool = True,
    ) -> None:
        require_packages("tqdm")
        from tqdm.auto import tqdm

        self._epochs = epochs
        self._validation = ""
        self._bar: Any = tqdm(
            total=samples * epochs,
            initial=samples * done,
            unit=f" {unit}",
            unit_scale=True,
            disable=None if drawn else True,
            dynamic_ncols=True,
            bar_format=_FORMAT,
        )

    @property
    def active(self) -> bool:
        """Whether anything is drawn; when not, the caller need not work out what to show."""
        return not self._bar.disable

    def start_epoch(self, epoch: int) -> None:
        """Show that epoch number ``epoch`` (from 1) begins."""
        self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)

    def step(self, samples: int, loss: float, accuracy: float) -> None:
        """Move on by ``samples``; ``loss`` and ``accuracy`` are the epoch's means so far."""
        text = f"loss {loss:.3f}, acc {100 * accuracy:.1f} %{self._validation}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(samples)

    def end_epoch(self, accuracy: float) -> None:
        """Show this validation accuracy from now on."""
        self._validation = f", val {100 * accuracy:.1f} %"

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
