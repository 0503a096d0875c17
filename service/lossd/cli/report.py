"""Tables of evaluations, scores and runs, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossd.cli.fitting import FittedTable, number_text
from lossd.cli.wording import in_commands
from lossd_client import Evaluation
from lossd_client.comparisons import interval_digits
from lossd_client.run_messages import flat
from lossd_client.wire import json

__all__ = ["document", "failures", "outcomes", "render", "runs", "score"]

MAX_CLASSES = 32
MAX_ROWS, MAX_COLUMNS = 40, 6
MAX_RANGES = 5
MAX_SLICE_COLUMNS = 3
MAX_LIST = 12
MOST_CONFUSIONS = 12
AVERAGES = ("macro", "micro", "weighted")
COUNTS = ("tp", "fp", "fn", "tn", "support")
NO_INTERVALS: Mapping[str, Any] = {}


def document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the answer in the service's JSON form, without the gradient."""
    answer = {"loss": evaluation.loss, "metrics": evaluation.metrics, "diagnostics": evaluation.diagnostics}
    if isinstance(evaluation.loss, np.ndarray):
        answer["loss"] = evaluation.loss.tolist()
    if evaluation.reduction is not None:
        answer["reduction"] = evaluation.reduction._asdict()
    return {**answer, **evaluation.extra}


def render(evaluation: Evaluation, *, title: str) -> RenderableType:
    """Return the answer as tables, without its tensors.

    Args:
        evaluation: The evaluation.
        title: The loss and its parameters.
    """
    parts: list[RenderableType] = [Text(title, style="bold"), _pairs(_figures(evaluation))]
    if evaluation.metrics:
        parts += ["", Text(f"metrics, {evaluation.metrics.task}", style="bold"), *_metrics(evaluation.metrics)]
    for warning in evaluation.warnings:
        parts.append(_warning(warning))
    return Group(*parts)


def score(document: Mapping[str, Any], *, title: str) -> RenderableType:
    """Return the score of a data set as tables.

    Args:
        document: The result of a run in JSON form; also ``files``, or ``run`` with ``status`` and ``signature``. The
            signature is a long line, which is printed without cropping to be copied.
        title: The loss and its parameters, or the task.
    """
    intervals = document.get("intervals") or {}
    parts: list[RenderableType] = [Text(title, style="bold"), _pairs(_facts(document))]
    if metrics := document["metrics"]:
        how = f", {100 * document['level']:.6g} % intervals" if intervals else ""
        parts += ["", Text(f"metrics, {metrics['task']}{how}", style="bold"), *_metrics(metrics, intervals)]
    if document.get("slices"):
        parts += ["", Text("slices", style="bold"), *_slices(document)]
    for name, bound in document["bounds"].items():
        parts.append(Text(f"{name} is within {number_text(bound['within'])} of the exact value", style="dim"))
    for warning in document["warnings"]:
        parts.append(_warning(warning))
    if document.get("signature"):
        parts += ["", Text(document["signature"], style="dim", no_wrap=True, overflow="ignore")]
    return Group(*parts)


def _warning(warning: Mapping[str, Any]) -> Text:
    return Text(f"{warning['code']}: {in_commands(warning['detail'])}", style="yellow")


def runs(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return a table of runs: name, data set, status, rows, and the metrics that most of them have as columns."""
    figures = [run.get("summary") or {} for run in found]
    names = list(dict.fromkeys(name for each in figures for name in each if not name.endswith((".micro", ".weighted"))))
    names.sort(key=lambda name: -sum(name in each for each in figures))
    table = FittedTable("run", "data set", "status", "rows", *names[:MAX_COLUMNS])
    for run, numbers in zip(found, figures, strict=True):
        dataset = run.get("dataset") or {}
        version = f"@{dataset['version']}" if dataset.get("version") else ""
        cells = [number_text(numbers.get(name)) for name in names[:MAX_COLUMNS]]
        counted = run.get("summary_of") or run["counted"]
        behind = counted["rows"] != run["counted"]["rows"]
        status = run["status"] + (f" (numbers of {counted['rows']:,} rows)" if behind else "")
        table.add_row(run["run"], f"{dataset.get('name', '')}{version}", status, f"{run['counted']['rows']:,}", *cells)
    return table


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the facts of a score beside its metrics: a name and a text each."""
    if "run" in document:
        yield "run", f"{document['run']} ({document['status']})"
    if "files" in document:
        yield "files", f"{document['files']['counted']:,} of {document['files']['of']:,}"
    yield "rows", f"{document['counted']['rows']:,}"
    if document["missing"]:
        ranges = [f"{first}" if first + 1 == stop else f"{first}-{stop - 1}" for first, stop in document["missing"]]
        more = f", ... {len(ranges) - MAX_RANGES} more ranges" if len(ranges) > MAX_RANGES else ""
        yield "missing", f"{', '.join(ranges[:MAX_RANGES])}{more}"
    if document.get("loss") is not None:
        yield "loss", _with_interval("loss", document["loss"], document.get("intervals") or {})
    if document["targets"] is not None:
        yield "targets", document["targets"]


def _figures(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    reduction, diagnostics = evaluation.reduction, evaluation.diagnostics
    if isinstance(evaluation.loss, int | float):
        yield "loss", number_text(evaluation.loss)
    elif evaluation.loss is not None:
        yield "loss", f"unreduced, of shape {tuple(evaluation.loss.shape)}"
    if reduction is not None:
        yield "numerator / denominator", f"{number_text(reduction.numerator)} / {number_text(reduction.denominator)}"
    for name, norm in diagnostics.get("gradient_norm", {}).items():
        yield f"gradient norm, {name}", number_text(norm)
    if "chance_level" in diagnostics:
        yield "chance level", number_text(diagnostics.chance_level)
    for name, value in evaluation.extra.items():
        yield name, json.dumps(value).decode()


def _slices(document: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a table of the slices, and which is the worst by each number of the table."""
    every = flat(document.get("loss"), document["metrics"])
    names = [name for name in every if not name.endswith((".micro", ".weighted"))][:MAX_SLICE_COLUMNS]
    table = FittedTable("slice", "rows", *names)
    for each in document["slices"]:
        numbers = flat(each.get("loss"), each["metrics"])
        cells = (_with_interval(name, numbers.get(name), each["intervals"]) for name in names)
        table.add_row(_slice_name(each["slice"]), f"{each['counted']['rows']:,}", *cells)
    yield table
    for name in names:
        if worst := document["worst"].get(name):
            text = f"worst {name}: {_slice_name(worst['slice'])}, {number_text(worst['value'])}"
            yield Text(f"{text}; gap {number_text(document['gap'].get(name))}", style="dim")


def _slice_name(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _with_interval(name: str, value: float | None, intervals: Mapping[str, Any]) -> str:
    """Return a number with its interval, if it has one."""
    interval = intervals.get(name)
    if value is None or interval is None:
        return number_text(value)
    digits = interval_digits(interval["low"], interval["high"])
    return f"{number_text(value)} ({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def _metrics(metrics: Mapping[str, Any], intervals: Mapping[str, Any] = NO_INTERVALS) -> Iterator[RenderableType]:
    averaged = {n: v for n, v in metrics.items() if isinstance(v, Mapping) and set(AVERAGES) <= v.keys()}
    plain = {n: v for n, v in metrics.items() if isinstance(v, int | float | None) and n != "task"}
    lists = {n: v for n, v in metrics.items() if isinstance(v, list) and n not in COUNTS and _is_short(v)}
    plain |= {
        f"{n}.{field}": v
        for n, fields in metrics.items()
        if isinstance(fields, Mapping) and n not in averaged
        for field, v in fields.items()
        if isinstance(v, int | float | None)
    }
    if plain or lists:
        rows = [(name, _with_interval(name, value, intervals)) for name, value in plain.items()]
        yield _pairs(iter([*rows, *((name, ", ".join(map(number_text, values))) for name, values in lists.items())]))
    if averaged:
        table = FittedTable("", *AVERAGES)
        for name, value in averaged.items():
            cells = (_with_interval(f"{name}.{average}", value[average], intervals) for average in AVERAGES)
            table.add_row(name, *cells)
        yield Padding(table, (1, 0, 0, 0), expand=False)
    support, matrix = metrics.get("support"), metrics.get("confusion_matrix")
    listed = {name: value["per_class"] for name, value in averaged.items() if "per_class" in value}
    if isinstance(support, Sequence) and listed and len(support) <= MAX_CLASSES:
        table = FittedTable("class", *listed, "support")
        for index, count in enumerate(support):
            table.add_row(str(index), *(number_text(values[index]) for values in listed.values()), str(count))
        yield Padding(table, (1, 0, 0, 0), expand=False)
    if matrix and isinstance(matrix, Sequence) and len(matrix) <= MAX_CLASSES:
        several = isinstance(matrix[0][0], Sequence)
        yield Padding(_label_counts(matrix) if several else _Confusion(matrix), (1, 0, 0, 0), expand=False)


def _is_short(values: Sequence[Any]) -> bool:
    """Return whether a list is of few numbers."""
    return len(values) <= MAX_LIST and all(isinstance(value, int | float | None) for value in values)


def _label_counts(matrices: Sequence[Sequence[Sequence[float]]]) -> FittedTable:
    """Return the four counts of each label's matrix."""
    table = FittedTable("label", "tn", "fp", "fn", "tp")
    for index, matrix in enumerate(matrices):
        table.add_row(str(index), *(number_text(count) for row in matrix for count in row))
    return table


class _Confusion:
    """A confusion matrix: rows are true classes, columns predicted ones; correct predictions are highlighted.

    If the terminal is too narrow for it, the most frequent confusions are listed.
    """

    def __init__(self, matrix: Sequence[Sequence[float]]) -> None:
        self.matrix = matrix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the matrix or the list."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("true / predicted", style="dim", no_wrap=True)
        for column in range(len(self.matrix)):
            table.add_column(str(column), justify="right", no_wrap=True)
        for index, row in enumerate(self.matrix):
            cells = [
                Text(number_text(n), style="bold green" if column == index else "red") if n else Text("·", style="dim")
                for column, n in enumerate(row)
            ]
            table.add_row(str(index), *cells)
        if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
            yield table
            return
        wrong = [(n, i, j) for i, row in enumerate(self.matrix) for j, n in enumerate(row) if n and i != j]
        listed = FittedTable("true", "predicted", "count")
        for count, true, predicted in sorted(wrong, key=lambda entry: -entry[0])[:MOST_CONFUSIONS]:
            listed.add_row(str(true), str(predicted), number_text(count))
        yield Text(f"the most frequent of {len(wrong)} confusions; --json has the matrix", style="dim")
        yield listed


def _pairs(pairs: Iterator[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def outcomes(rows: Sequence[tuple[str, Mapping[str, float | None] | str]]) -> RenderableType:
    """Return a table of many files, a row each; if there are too many, only the first and the last.

    Args:
        rows: The file's name, and its numbers or its error.
    """
    every = next((list(figures) for _, figures in rows if not isinstance(figures, str)), [])
    names = [name for name in every if not name.endswith((".micro", ".weighted"))][:MAX_COLUMNS]
    table = FittedTable("file", *names)
    hidden = range(MAX_ROWS // 2, len(rows) - MAX_ROWS // 2) if len(rows) > MAX_ROWS else range(0)
    for index, (name, figures) in enumerate(rows):
        if index in hidden:
            if index == hidden[0]:
                table.add_row(f"… {len(hidden)} more", *("…" for _ in names))
        elif isinstance(figures, str):
            table.add_row(name, *("–" for _ in names), style="red")
        else:
            table.add_row(name, *(number_text(figures.get(column)) for column in names))
    return table


def failures(rows: Sequence[tuple[str, Mapping[str, float | None] | str]]) -> list[Text]:
    """Return the errors, a line each, up to a limit."""
    wrong = [Text(f"{name}: {error}", style="red") for name, error in rows if isinstance(error, str)]
    more = [Text(f"… {len(wrong) - MAX_ROWS} more", style="red")] if len(wrong) > MAX_ROWS else []
    return [*wrong[:MAX_ROWS], *more]
