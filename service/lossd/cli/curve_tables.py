"""Curves for a terminal: drawn with characters, or as tables of some points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from lossd.cli.canvas import COLOURS, CanvasCurve, draw
from lossd.cli.fitting import FittedTable, number_text

__all__ = ["curve"]

SHOWN_POINTS = 11
PICTURE_LINES, MAX_PICTURE = 12, 100


def curve(document: Mapping[str, Any], *, drawn: bool) -> RenderableType:
    """Return a curve: the loss of each line, then the gradient; drawn, or tables of some points."""
    series = document["series"]
    shared = f"{series[0]['name']}, " if len({line["name"] for line in series}) == 1 else ""
    labels = [line["label"].removeprefix(shared) for line in series]
    parts: list[RenderableType] = []
    for what, title in (("loss", "loss"), ("gradient", f"gradient, with respect to {series[0]['gradient_of']}")):
        show = _Picture(document, what, labels) if drawn else _points(document, what, labels)
        parts += ["", Text(title, style="bold"), show]
    return Group(Text(f"{shared}along the {document['label']}"), *parts)


def _points(document: Mapping[str, Any], what: str, labels: Sequence[str]) -> RenderableType:
    table = FittedTable(document["axis"], *labels)
    last = len(document["x"]) - 1
    for point in np.linspace(0, last, min(SHOWN_POINTS, last + 1)).round().astype(int):
        numbers = (float(line[what][point]) if line[what] else math.nan for line in document["series"])
        table.add_row(number_text(document["x"][point]), *map(number_text, numbers))
    return table


class _Picture:
    """The curves as characters, as wide as the terminal, with a legend."""

    def __init__(self, document: Mapping[str, Any], what: str, labels: Sequence[str]) -> None:
        self.curves = [
            CanvasCurve(document["x"], line[what] or (), COLOURS[i % len(COLOURS)])
            for i, line in enumerate(document["series"])
        ]
        self.labels = labels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the picture and the legend."""
        curves = [curve for curve in self.curves if curve.y]
        yield draw(curves, width=min(options.max_width, MAX_PICTURE), height=PICTURE_LINES)
        legend = Text("   ").join(
            Text.assemble(("━━ ", curve.colour), label)
            for curve, label in zip(self.curves, self.labels, strict=True)
            if curve.y
        )
        yield legend
