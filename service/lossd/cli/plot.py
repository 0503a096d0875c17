"""Draw a loss's curve, or the metrics of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd.cli.progress import load_torch
from lossd.pictures.kinds import KINDS as OF_METRICS

if TYPE_CHECKING:
    from lossd_client import Evaluation

__all__ = ["KINDS", "Image", "curve_document", "kind_for", "metrics_of", "write"]

KINDS: Mapping[str, tuple[str, ...]] = {**OF_METRICS, "curve": ()}
"""The kinds of pictures; the first that a task has is its default."""


class Image(click.Path):
    """A file for a picture, .svg or .png."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix not in (".svg", ".png"):
            self.fail(f"{value} must end in .svg or .png", param, ctx)
        return path


def kind_for(task: str, requested: str | None, *, loss: str | None) -> str:
    """Return the requested kind, or the first whose metric the task has, or the loss's curve.

    Raises:
        click.UsageError: The task has no picture of that kind.
    """
    fitting = [kind for kind in KINDS if metrics_of(kind, task)] + (["curve"] if loss else [])
    if not fitting or (requested is not None and requested not in fitting):
        choices = f"; its kinds are {', '.join(fitting)}" if fitting else ""
        raise click.UsageError(f"the task {task} has no picture{f' of kind {requested}' if requested else ''}{choices}")
    return requested or fitting[0]


def metrics_of(kind: str, task: str) -> list[str]:
    """Return the metrics that a picture of that kind needs; empty if the task lacks them."""
    from lossd.metrics import METRICS
    from lossd.metrics.counts import LABELS

    if kind == "confusion" and task in LABELS:  # each label has a matrix of its own
        return []
    has = METRICS.get(task, {})
    return [name for name in KINDS[kind] if name in has] if KINDS[kind] and KINDS[kind][0] in has else []


def curve_document(name: str, parameters: Mapping[str, Sequence[Any]], **options: Any) -> dict[str, Any]:
    """Return the document of a loss's curve, evaluated here; see :func:`lossd.pictures.curves.curve`."""
    load_torch()
    from lossd import evaluate
    from lossd.pictures.curves import Line, PointAnswer, curve

    def answers(line: Line) -> list[PointAnswer]:
        evaluations = (
            evaluate(request["loss"], inputs=each, outputs=request["outputs"])
            for request, each in zip(line.requests, line.inputs, strict=True)
        )
        return [PointAnswer(evaluation.loss, evaluation.gradients) for evaluation in evaluations]

    drawing = curve(name, parameters, **options)
    return drawing.document([answers(line) for line in drawing.lines])


def write(path: Path, kind: str, document: Mapping[str, Any], theme: str = "auto") -> None:
    """Draw a picture into a file."""
    from lossd.pictures import plots

    try:
        image = plots.draw(kind, document, form=path.suffix[1:], theme=theme)  # type: ignore[arg-type]  # both are checked
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    path.write_bytes(image)
    click.echo(f"drawn into {path}", err=True)


def of_evaluation(
    path: Path, kind: str, task: str, loss: Mapping[str, Any] | None, ask: Callable[[list[str]], Evaluation]
) -> None:
    """Draw the metrics of an evaluation, or its loss's curve.

    Args:
        path: The picture's file.
        kind: One of :data:`KINDS`.
        task: The task of the metrics.
        loss: The loss's name and parameters.
        ask: Returns an evaluation with these metrics.
    """
    if kind == "curve":
        assert loss is not None, "without a loss there is no such kind"
        document = curve_document(loss["name"], {n: [v] for n, v in loss.items() if n not in ("name", "reduction")})
    else:
        document = ask(metrics_of(kind, task)).metrics
    write(path, kind, document)
