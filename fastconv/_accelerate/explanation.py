# SPDX-License-Identifier: MIT
"""The result of ``fastconv.explain``: data, and its forms as table, JSON and chart."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_COLUMNS = (
    "layer",
    "type",
    "input",
    "kernel",
    "torch ms",
    "fastconv ms",
    "ratio",
    "error",
    "torch's",
)


@dataclass(frozen=True)
class LayerRow:
    """A layer, or layers that run as one operator.

    Attributes:
        name, type: as in ``model.named_modules()``; of a chain its first and last layer.
        input_shapes: of the tensors it is called with.
        kernels: algorithm and instruction set of every kernel that ran; none when torch served it.
        torch_ms, fastconv_ms: medians.
        error, torch_error: root mean square of the difference from float64, relative to that of
            the float64 result; the larger one where there are several outputs.
    """

    name: str
    type: str
    input_shapes: list[list[int]]
    kernels: dict[str, str]
    torch_ms: float
    fastconv_ms: float
    torch_error: float
    error: float

    @property
    def ratio(self) -> float:
        """How many times faster than torch."""
        return self.torch_ms / self.fastconv_ms

    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        algorithms = {kernel.split(" (")[0] for kernel in self.kernels.values()}
        kernel = ", ".join(sorted(algorithms)) or "torch"
        return (
            self.name, self.type, shapes, kernel, f"{self.torch_ms:.3f}", f"{self.fastconv_ms:.3f}",
            f"{self.ratio:.2f}x", f"{self.error:.1e}", f"{self.torch_error:.1e}",
        )  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """What ``fastconv.explain`` measured; ``str()`` is a table.

    Attributes:
        rows: one :class:`LayerRow` per layer or fused chain, in the model's order.
        training: whether times are those of forward and backward pass.
        threads, isa: torch's number of threads, fastconv's instruction set.
        torch_ms, fastconv_ms: medians of the whole model.
    """

    rows: list[LayerRow]
    training: bool
    threads: int
    isa: str
    torch_ms: float
    fastconv_ms: float

    @property
    def ratio(self) -> float:
        """How many times faster than torch the whole model is."""
        return self.torch_ms / self.fastconv_ms

    def __str__(self) -> str:
        lines = [_COLUMNS, *(row.cells() for row in self.rows), self._last_cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
        left = 4  # columns of text; the others are numbers
        table = [
            "  ".join(
                cell.ljust(width) if i < left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self._title(), *table])

    def _title(self) -> str:
        what = "forward and backward" if self.training else "forward"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{what}, {threads}, {self.isa}; errors against float64, relative to its rms"

    def _last_cells(self) -> tuple[str, ...]:
        times = (f"{self.torch_ms:.3f}", f"{self.fastconv_ms:.3f}", f"{self.ratio:.2f}x")
        return ("whole model", "", "", "", *times, "", "")

    def show(self) -> None:
        """Prints the table, by rich if it is installed."""
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            print(self)
            return
        table = Table(title=self._title())
        for i, column in enumerate(_COLUMNS):
            table.add_column(column, justify="left" if i < 4 else "right")
        for row in self.rows:
            table.add_row(*row.cells(), style=None if row.ratio >= 1 else "yellow")
        table.add_section()
        table.add_row(*self._last_cells(), style="bold")
        Console().print(table)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ratios included."""
        data = asdict(self)
        data["ratio"] = self.ratio
        for row, entry in zip(self.rows, data["rows"], strict=True):
            entry["ratio"] = row.ratio
        return data

    def to_json(self, path: str | Path | None = None) -> str:
        """The data as JSON; written to ``path``, too, if one is given."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        if path is not None:
            Path(path).write_text(text)
        return text

    def to_png(self, path: str | Path) -> None:
        """A chart of the times of every layer.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("the chart needs matplotlib: pip install matplotlib") from None
        positions = range(len(self.rows))
        figure = Figure(figsize=(8, 1.5 + 0.35 * len(self.rows)), layout="constrained")
        axes = figure.add_subplot()
        for offset, label, color, times in (
            (-0.2, "torch", "#c44e52", [row.torch_ms for row in self.rows]),
            (0.2, "fastconv", "#4c72b0", [row.fastconv_ms for row in self.rows]),
        ):
            axes.barh([p + offset for p in positions], times, 0.4, label=label, color=color)
        for position, row in zip(positions, self.rows, strict=True):
            longest = max(row.torch_ms, row.fastconv_ms)
            axes.annotate(f" {row.ratio:.1f}x", (longest, position), va="center", fontsize="small")
        axes.set_yticks(positions, [f"{row.name}  {row.type}" for row in self.rows])
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds")
        title = f"{self._title().split(';')[0]}\nwhole model {self.ratio:.2f}x"
        axes.set_title(title, fontsize="medium", loc="left")
        axes.margins(x=0.1)
        axes.legend()
        figure.savefig(path, dpi=120)
