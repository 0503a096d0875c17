"""Curves drawn with characters of Braille, two dots wide and four dots high."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

__all__ = ["COLOURS", "CanvasCurve", "draw"]

COLOURS = ("blue", "dark_orange3", "green4", "magenta", "cyan", "yellow4")
BLANK = 0x2800
# The bit of a dot in its character, by column and row.
BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
MARGIN = 10
"""The characters beside the picture, for the numbers of its axis."""


class CanvasCurve(NamedTuple):
    """The points of a curve, and its colour; None is a point without a value."""

    x: Sequence[float]
    y: Sequence[float | None]
    colour: str


def draw(curves: Sequence[CanvasCurve], *, width: int, height: int) -> Text:
    """Return a picture of curves with the numbers at the ends of both axes.

    Args:
        curves: The curves; later ones are drawn over earlier ones.
        width: Its characters in a line.
        height: Its lines, without that of the axis.
    """
    values = [y for curve in curves for y in curve.y if y is not None and math.isfinite(y)]
    if not values:
        return Text("no finite value to draw", style="dim")
    low, high = min(values), max(values)
    begin, end = min(min(curve.x) for curve in curves), max(max(curve.x) for curve in curves)
    columns, rows = 2 * (width - MARGIN), 4 * height
    bits = [[0] * (width - MARGIN) for _ in range(height)]
    colours = [[""] * (width - MARGIN) for _ in range(height)]

    def dot(column: int, row: int, colour: str) -> None:
        bits[row // 4][column // 2] |= BITS[column % 2][row % 4]
        colours[row // 4][column // 2] = colour

    for curve in curves:
        last: int | None = None
        for column in range(columns):
            y = _at(curve, begin + (end - begin) * column / (columns - 1))
            if y is None:
                last = None
                continue
            row = round((rows - 1) * (high - y) / ((high - low) or 1.0))
            for between in range(min(row, row if last is None else last), max(row, row if last is None else last) + 1):
                dot(column, between, curve.colour)
            last = row
    picture = Text()
    for line, (signs, paints) in enumerate(zip(bits, colours, strict=True)):
        number = _number(high, high - low) if line == 0 else _number(low, high - low) if line == height - 1 else ""
        picture.append(f"{number:>{MARGIN - 2}} │", style="dim")
        for sign, paint in zip(signs, paints, strict=True):
            picture.append(chr(BLANK + sign), style=paint or None)
        picture.append("\n")
    picture.append(f"{'':>{MARGIN - 1}}└{'─' * (width - MARGIN)}\n", style="dim")
    right = f"{end:.4g}"
    picture.append(f"{'':>{MARGIN}}{begin:<{width - MARGIN - len(right)}.4g}{right}", style="dim")
    return picture


def _number(value: float, span: float) -> str:
    """Return the text of a number of an axis; 0 if it is less than a dot from 0."""
    return "0" if abs(value) < span / 1000 else f"{value:.3g}"


def _at(curve: CanvasCurve, x: float) -> float | None:
    """Return the curve's value at x, between its two nearest points; None if one of them has no value."""
    after = bisect.bisect_left(curve.x, x)
    if after >= len(curve.x) or (after == 0 and x < curve.x[0]):
        return None
    before = max(0, after - 1)
    left, right = curve.y[before], curve.y[after]
    if left is None or right is None or not (math.isfinite(left) and math.isfinite(right)):
        return None
    step = curve.x[after] - curve.x[before]
    return right if step == 0 else left + (right - left) * (x - curve.x[before]) / step
