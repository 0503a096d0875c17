"""Pictures: of a loss, and of the metrics of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lossd_client import Evaluation

__all__ = ["KINDS", "Image", "curve_document", "kind_for", "metrics_of", "write"]

# Of each kind the metric it draws, and the one that sums it up. Of a task the first it has is drawn.
KINDS: Mapping[str, tuple[str, ...]] = {
    "roc": ("roc_curve", "auroc"),
    "pr": ("pr_curve", "average_precision"),
    "confusion": ("confusion_matrix",),
    "reliability": ("reliability", "ece"),
    "curve": (),
}


class Image(click.Path):
    """A file to draw into, .svg or .png."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix not in (".svg", ".png"):
            self.fail(f"{value} must end in .svg or .png", param, ctx)
        return path


def kind_for(task: str, asked: str | None, *, loss: str | None) -> str:
    """The kind that was asked for, or the first that the task has the metric of, or the loss's curve.

    Raises:
        click.UsageError: The task has nothing of that kind.
    """
    fitting = [kind for kind in KINDS if metrics_of(kind, task)] + (["curve"] if loss else [])
    if not fitting or (asked is not None and asked not in fitting):
        there = f"there is {', '.join(fitting)}" if fitting else "there is nothing to draw"
        raise click.UsageError(f"{asked or 'a picture'} of {task} cannot be drawn; {there}")
    return asked or fitting[0]


def metrics_of(kind: str, task: str) -> list[str]:
    """What a picture of that kind needs to know; nothing where the task has not got it."""
    from lossd.metrics import METRICS
    from lossd.metrics.counts import LABELS

    if kind == "confusion" and task in LABELS:  # which have a matrix each
        return []
    has = METRICS.get(task, {})
    return [name for name in KINDS[kind] if name in has] if KINDS[kind] and KINDS[kind][0] in has else []


def curve_document(name: str, parameters: Mapping[str, Sequence[Any]], **options: Any) -> dict[str, Any]:
    """A loss's curve, evaluated here; see :func:`lossd.pictures.curves.curve`."""
    from lossd import evaluate
    from lossd.pictures.curves import Line, PointAnswer, curve

    def answers(line: Line) -> list[PointAnswer]:
        request = line.request
        asked = (evaluate(request["loss"], inputs=each, outputs=request["outputs"]) for each in line.inputs)
        return [PointAnswer(evaluation.loss, evaluation.gradients) for evaluation in asked]

    of = curve(name, parameters, **options)
    return of.document([answers(line) for line in of.lines])


def write(path: Path, kind: str, document: Mapping[str, Any], theme: str = "auto") -> None:
    """Draw into a file."""
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
    """Draw what an evaluation comes to.

    Args:
        path: Where to.
        kind: Which of :data:`KINDS`.
        task: Whose metrics.
        loss: Its name and parameters.
        ask: Metrics by name, as an evaluation.
    """
    if kind == "curve":
        assert loss is not None, "without a loss there is no such kind"
        document = curve_document(loss["name"], {n: [v] for n, v in loss.items() if n not in ("name", "reduction")})
    else:
        document = ask(metrics_of(kind, task)).metrics
    write(path, kind, document)
