"""Evaluations and the catalogue, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossd_client import Evaluation
from lossd_client.wire import json

__all__ = ["as_json", "catalogue", "console", "loss", "render"]

MAX_CLASSES = 32
AVERAGES = ("macro", "micro", "weighted")


def as_json(evaluation: Evaluation) -> str:
    """The answer as the service's JSON has it, without the gradient."""
    answer = {"loss": evaluation.loss, "metrics": evaluation.metrics, "diagnostics": evaluation.diagnostics}
    if isinstance(evaluation.loss, np.ndarray):
        answer["loss"] = evaluation.loss.tolist()
    if evaluation.reduction is not None:
        answer["reduction"] = evaluation.reduction._asdict()
    return json.dumps(json.finite({**answer, **evaluation.extra})).decode()


def render(evaluation: Evaluation, *, title: str) -> RenderableType:
    """The answer without its tensors, as tables.

    Args:
        evaluation: What was answered.
        title: What was asked.
    """
    parts: list[RenderableType] = [Text(title, style="bold"), _pairs(_figures(evaluation))]
    if evaluation.metrics:
        parts += ["", Text(f"metrics, {evaluation.metrics.task}", style="bold"), *_metrics(evaluation.metrics)]
    for warning in evaluation.warnings:
        parts.append(Text(f"{warning.code}: {warning.detail}", style="yellow"))
    return Group(*parts)


def _figures(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    reduction, diagnostics = evaluation.reduction, evaluation.diagnostics
    if isinstance(evaluation.loss, int | float):
        yield "loss", _number(evaluation.loss)
    elif evaluation.loss is not None:
        yield "loss", f"unreduced, of shape {tuple(evaluation.loss.shape)}"
    if reduction is not None:
        yield "numerator / denominator", f"{_number(reduction.numerator)} / {_number(reduction.denominator)}"
    for name, norm in diagnostics.get("gradient_norm", {}).items():
        yield f"gradient norm, {name}", _number(norm)
    if "chance_level" in diagnostics:
        yield "chance level", _number(diagnostics.chance_level)
    for name, value in evaluation.extra.items():
        yield name, json.dumps(value).decode()


def _metrics(metrics: Mapping[str, Any]) -> Iterator[RenderableType]:
    averaged = {n: v for n, v in metrics.items() if isinstance(v, Mapping) and set(AVERAGES) <= v.keys()}
    plain = {n: v for n, v in metrics.items() if isinstance(v, int | float | None) and n != "task"}
    if plain:
        yield _pairs((name, _number(value)) for name, value in plain.items())
    if averaged:
        table = _table("", *AVERAGES)
        for name, value in averaged.items():
            table.add_row(name, *(_number(value[average]) for average in AVERAGES))
        yield Padding(table, (1, 0, 0, 0), expand=False)
    support, matrix = metrics.get("support"), metrics.get("confusion_matrix")
    if isinstance(support, Sequence) and averaged and len(support) <= MAX_CLASSES:
        table = _table("class", *averaged, "support")
        for index, count in enumerate(support):
            table.add_row(str(index), *(_number(v["per_class"][index]) for v in averaged.values()), str(count))
        yield Padding(table, (1, 0, 0, 0), expand=False)
    if matrix and len(matrix) <= MAX_CLASSES:
        yield Padding(_confusion(matrix), (1, 0, 0, 0), expand=False)


def _confusion(matrix: Sequence[Sequence[float]]) -> Table:
    """Rows are what is, columns what was predicted; what is right stands out."""
    table = _table("is / predicted", *map(str, range(len(matrix))))
    for index, row in enumerate(matrix):
        cells = [
            Text(_number(count), style="bold green" if column == index else "red") if count else Text("·", style="dim")
            for column, count in enumerate(row)
        ]
        table.add_row(str(index), *cells)
    return table


def _pairs(pairs: Iterator[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, style="dim", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def catalogue(losses: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Every loss, a line each."""
    table = _listing("loss", "task", "")
    for description in losses:
        notes = "" if description["available"] else " (not available here)"
        table.add_row(description["name"], description["task"], _prose(description["summary"] + notes))
    return table


def loss(description: Mapping[str, Any]) -> RenderableType:
    """One loss: its formula, inputs, parameters and references."""
    inputs = _listing("inputs", "shape", "")
    for entry in description["inputs"]:
        marks = [mark for mark in ("differentiable", "optional") if entry[mark]]
        notes = f" ({', '.join(marks)})" if marks else ""
        inputs.add_row(entry["name"], " or ".join(t["shape"] for t in entry["types"]), _prose(entry["summary"] + notes))
    parameters = _listing("parameters", "default", "")
    for name, schema in description["parameters"].items():
        default = json.dumps(schema["default"]).decode() if "default" in schema else "required"
        parameters.add_row(name, default, _prose(schema.get("description", "")))
    parts: list[RenderableType] = [
        Text(description["name"], style="bold") + Text(f"  {description['task']}", style="dim not bold"),
        _prose(description["summary"]),
        *([] if description["available"] else [Text(description["unavailable_because"], style="yellow")]),
        Padding(Text(description["formula"], style="cyan"), (1, 0), expand=False),
        inputs,
        Padding(parameters, (1, 0), expand=False),
        *map(_prose, description["references"]),
    ]
    return Group(*parts)


def _listing(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=heading != "")
    return table


def _prose(text: str) -> Text:
    return Text(text.replace("``", ""))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def console() -> Console:
    """Where tables go: as wide as the terminal, or as they need where there is none."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=120)
