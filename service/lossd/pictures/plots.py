"""Draw the service's answers: curves, confusion matrices, ROC, precision over recall, reliability.

``python -m lossd.pictures.plots curve svg auto`` draws one document from its standard input. An SVG keeps text as text
and follows the reader's preference for light or dark. Equal documents give equal bytes.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lossd.pictures.jumps import Jump, stepped

__all__ = ["KINDS", "draw"]

Form = Literal["svg", "png"]
Theme = Literal["auto", "light", "dark"]

MAX_CLASSES = 64
NUMBERED_CLASSES = 16


class _Palette(NamedTuple):
    """The colours of a theme."""

    paper: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]


LIGHT = _Palette(
    "#ffffff", "#1f2328", "#59636e", "#d8dee4", ("#0b62b8", "#c2410c", "#087f5b", "#a21caf", "#8a6100", "#0e7490")
)
DARK = _Palette(
    "#0d1117", "#e6edf3", "#9198a1", "#30363d", ("#58a6ff", "#ff9a62", "#3fc796", "#e58af5", "#e0b23a", "#4fd1e5")
)
DASHES = ("-", "--", "-.", ":")

SETTINGS: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lossd",
    "text.parse_math": False,  # labels contain clients' text: a dollar sign is no formula
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}


def draw(kind: str, document: Mapping[str, Any], *, form: Form = "svg", theme: Theme = "auto") -> bytes:
    """Return a picture.

    Args:
        kind: One of :data:`KINDS`.
        document: The document to draw; its form depends on the kind.
        form: The file's format.
        theme: The colours; ``auto`` follows the reader's preference in an SVG and is light in a PNG.
    """
    palette = DARK if theme == "dark" else LIGHT
    colours: Mapping[Any, Any] = {
        "figure.facecolor": palette.paper,
        "axes.facecolor": palette.paper,
        "savefig.facecolor": palette.paper,
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.muted,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "grid.color": palette.grid,
    }
    with mpl.rc_context({**SETTINGS, **colours}):
        picture = KINDS[kind](document, palette)
        file = io.BytesIO()
        if form == "png":
            picture.figure.savefig(file, format="png", dpi=144, metadata={"Software": None, "Title": picture.title})
            return file.getvalue()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        picture.figure.savefig(file, format="svg", metadata=nothing)
    return _accessible(file.getvalue().decode(), picture, theme).encode()


class _Picture(NamedTuple):
    """A figure, with its title and description."""

    figure: Figure
    title: str
    description: str


def _accessible(svg: str, picture: _Picture, theme: Theme) -> str:
    """Return the file with its title, description and dark-mode rules in front of its content."""
    _, tag, rest = svg.partition("<svg ")
    attributes, _, content = rest.partition(">")
    rules = ""
    if theme == "auto":
        pairs = zip((*LIGHT[:4], *LIGHT.lines), (*DARK[:4], *DARK.lines), strict=True)
        # Matplotlib writes colours into every element's style; only !important overrides them.
        rules = "".join(
            f'[style*="{use}: {light}"]{{{use}:{dark}!important}}'
            for light, dark in pairs
            for use in ("fill", "stroke")
        )
        rules = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    words = f'<title id="title">{escape(picture.title)}</title><desc id="desc">{escape(picture.description)}</desc>'
    return f'{tag}role="img" aria-labelledby="title desc" {attributes}>{words}{rules}{content}'


# Curves


def _curve(document: Mapping[str, Any], palette: _Palette) -> _Picture:
    """Draw a curve's document: loss on the left, gradient on the right."""
    x = np.asarray(document["x"], float)
    none = [math.nan] * len(x)  # the gradient of a curve along a parameter
    series = [{**line, "gradient": line["gradient"] or none} for line in document["series"]]
    figure = Figure(figsize=(8.6, 3.5 + 0.22 * ((len(series) + 2) // 3)))
    left, right = figure.subplots(1, 2)
    subjects = list(dict.fromkeys(line["gradient_of"] or "no input" for line in series))
    for axes, field, title in (
        (left, "loss", "loss"),
        (right, "gradient", textwrap.fill(f"gradient with respect to {' or '.join(subjects)}", 52)),
    ):
        lines = [np.asarray([float(value) for value in line[field]]) for line in series]
        for line, values, (colour, dashes) in zip(series, lines, _styles(palette), strict=False):
            found = [Jump(**jump) for jump in line.get("jumps", [])] if field == "gradient" else []
            axes.plot(
                *stepped(x, values, found),
                label=line["label"] if axes is left else None,
                color=colour,
                linestyle=dashes,
            )
        axes.set_title(title)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(*_telling(np.concatenate(lines)))
    figure.supxlabel(document["label"], fontsize=10)
    _legend(figure, left)
    names = " and ".join(dict.fromkeys(line["name"] for line in series))
    ranges = "; ".join(
        f"{line['label']}: loss {_span(line['loss'])}, gradient {_span(line['gradient'])}" for line in series
    )
    return _Picture(
        figure,
        f"{names} over {document['label']}",
        f"Two panels, loss and gradient, over {document['label']} from {x[0]:g} to {x[-1]:g}. {ranges}.",
    )


def _styles(palette: _Palette) -> Iterator[tuple[str, str]]:
    """A colour and dashes for each line. Dashes distinguish lines without colours, and show the line below."""
    return zip(cycle(palette.lines), cycle(DASHES))


def _telling(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Where to cut off: a pole at the edge would flatten everything else."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return -1.0, 1.0
    least, most = np.quantile(finite, [0.04, 0.96])
    reach = 0.6 * (most - least)
    low, high = max(finite.min(), least - reach), min(finite.max(), most + reach)
    margin = 0.06 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _span(values: Sequence[Any]) -> str:
    numbers = [float(value) for value in values]
    return f"{numbers[0]:.3g} to {numbers[-1]:.3g}, between {min(numbers):.3g} and {max(numbers):.3g}"


def _legend(figure: Figure, axes: Axes) -> None:
    _, labels = axes.get_legend_handles_labels()
    if labels:
        widest = max(map(len, labels))
        figure.legend(loc="outside upper left", ncols=max(1, min(len(labels), 110 // (widest + 8))), fontsize=9)


# Metrics


def _confusion(document: Mapping[str, Any], palette: _Palette) -> _Picture:
    """``{"confusion_matrix": rows}``: rows are what is, columns what was predicted; shades are parts of a row."""
    matrix = np.asarray(document["confusion_matrix"], float)
    classes = len(matrix)
    if classes > MAX_CLASSES:
        raise ValueError(f"a confusion matrix of {classes} classes cannot be read; {MAX_CLASSES} are the most")
    side = min(9.0, 2.2 + 0.45 * classes)
    figure = Figure(figsize=(side + 0.4, side))
    axes = figure.subplots()
    parts = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-300)
    for row in range(classes):
        for column in range(classes):
            colour = palette.lines[0] if row == column else palette.lines[1]
            alpha = 0.08 + 0.72 * parts[row, column] if matrix[row, column] else 0.0
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
            if classes <= NUMBERED_CLASSES and matrix[row, column]:
                axes.text(column, row, f"{matrix[row, column]:.4g}", ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), aspect="equal", title="confusion matrix")
    axes.set(xlabel="predicted class", ylabel="class")
    step = max(1, classes // NUMBERED_CLASSES)
    axes.set_xticks(range(0, classes, step))
    axes.set_yticks(range(0, classes, step))
    axes.grid(visible=False)
    right = np.trace(matrix) / matrix.sum() if matrix.sum() else float("nan")
    return _Picture(
        figure,
        "Confusion matrix",
        f"{classes} classes, {matrix.sum():g} predictions, of which {right:.4g} are right.",
    )


def _roc(document: Mapping[str, Any], palette: _Palette) -> _Picture:
    """``{"roc_curve": curve or curves, "auroc": …}``."""
    return _ranking(
        document, palette, ("roc_curve", "fpr", "tpr"), "auroc", "false positive rate", "true positive rate"
    )


def _pr(document: Mapping[str, Any], palette: _Palette) -> _Picture:
    """``{"pr_curve": curve or curves, "average_precision": …}``."""
    return _ranking(document, palette, ("pr_curve", "recall", "precision"), "average_precision", "recall", "precision")


def _ranking(
    document: Mapping[str, Any], palette: _Palette, fields: tuple[str, str, str], area: str, x: str, y: str
) -> _Picture:
    name, across, up = fields
    curves = document[name] if isinstance(document[name], list) else [document[name]]
    areas = document.get(area)
    each = areas["per_class"] if isinstance(areas, Mapping) else [areas]
    figure = Figure(figsize=(4.8, 4.8))
    axes = figure.subplots()
    labels = []
    for index, (points, size, style) in enumerate(zip(curves, each, _styles(palette), strict=False)):
        if points is None:
            continue
        label = " ".join(
            part for part in (f"label {index}" * (len(curves) > 1), f"area {size:.4g}" * (size is not None)) if part
        )
        labels.append(label or "one curve")
        axes.plot(points[across], points[up], color=style[0], linestyle=style[1], label=label or None)
    if not labels:
        raise ValueError(f"there is no {name}: all targets are of one kind")
    if name == "roc_curve":
        axes.plot([0, 1], [0, 1], color=palette.muted, linewidth=0.8)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")
    if any(labels) and len(labels) <= NUMBERED_CLASSES:
        _legend(figure, axes)
    title = "ROC curve" if name == "roc_curve" else "Precision over recall"
    return _Picture(figure, title, f"{y} over {x}: {'; '.join(labels)}.")


def _reliability(document: Mapping[str, Any], palette: _Palette) -> _Picture:
    """``{"reliability": {"confidence", "accuracy", "count"}, "ece": …}``."""
    bins = [
        b for b in zip(*(document["reliability"][f] for f in ("confidence", "accuracy", "count")), strict=True) if b[2]
    ]
    figure = Figure(figsize=(4.8, 5.6))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    edges = np.linspace(0, 1, len(document["reliability"]["count"]) + 1)
    upper.plot([0, 1], [0, 1], color=palette.muted, linewidth=0.8)
    confidence, accuracy, _ = zip(*bins, strict=True) if bins else ((), (), ())
    upper.plot(confidence, accuracy, color=palette.lines[0], marker="o", markersize=4)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="how often it was right")
    lower.bar(
        edges[:-1], document["reliability"]["count"], np.diff(edges), align="edge", color=palette.lines[0], alpha=0.5
    )
    lower.set(xlabel="probability given", ylabel="how many")
    error = document.get("ece")
    summary = "" if error is None else f"expected calibration error {error:.4g}"
    upper.set_title(summary or "reliability")
    pairs = "; ".join(f"{c:.3g}: {a:.3g} of {n:g}" for c, a, n in bins)
    return _Picture(
        figure, "Reliability", f"How often predictions were right, by the probability given. {summary} {pairs}."
    )


def _slices(document: Mapping[str, Any], palette: _Palette) -> _Picture:
    """``{"metric", "level", "all": {"value", "low", "high"}, "slices": [{"label", "rows", "value", "low", "high"}]}``.

    The first slice is at the top. Ends are null without an interval.
    """
    slices, every, level = document["slices"], document["all"], f"{100 * document['level']:.6g} %"
    figure = Figure(figsize=(7.2, 1.6 + 0.3 * len(slices)))
    axes = figure.subplots()
    if every["low"] is not None:
        axes.axvspan(every["low"], every["high"], color=palette.lines[0], alpha=0.15, linewidth=0)
    axes.axvline(every["value"], color=palette.lines[0], linewidth=1.2, label="all rows")
    for place, each in enumerate(slices):
        if each["low"] is not None:
            axes.plot([each["low"], each["high"]], [place, place], color=palette.ink, linewidth=1.2)
        axes.plot(each["value"], place, marker="o", markersize=5, color=palette.lines[1], linestyle="none")
    axes.set_yticks(range(len(slices)), [f"{each['label']}  ({each['rows']:,} rows)" for each in slices])
    axes.set(ylim=(len(slices) - 0.5, -0.5), xlabel=f"{document['metric']}, {level} intervals")
    _legend(figure, axes)
    texts = [
        f"{each['label']}: {each['value']:.4g}"
        + (f" ({each['low']:.4g} to {each['high']:.4g})" if each["low"] is not None else "")
        for each in [{**every, "label": "all rows"}, *slices]
    ]
    return _Picture(figure, f"{document['metric']} by slice", f"{level} intervals. {'; '.join(texts)}.")


KINDS: Mapping[str, Callable[[Mapping[str, Any], _Palette], _Picture]] = {
    "curve": _curve,
    "confusion": _confusion,
    "roc": _roc,
    "pr": _pr,
    "reliability": _reliability,
    "slices": _slices,
}
"""The kinds of pictures, by name."""


def main() -> None:
    """Draw the document on standard input, at a low priority so that requests come first.

    The exit status is 3 if there is nothing to draw; standard error says why.
    """
    os.nice(10)
    kind, form, theme = sys.argv[1:]
    document = json.loads(sys.stdin.buffer.read())
    try:
        image = draw(kind, document, form=form, theme=theme)  # type: ignore[arg-type]  # checked by the caller
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(3) from None
    sys.stdout.buffer.write(image)


if __name__ == "__main__":
    main()
