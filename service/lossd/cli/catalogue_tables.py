"""Tables of losses and metrics, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossd.cli.fitting import Listing
from lossd_client.wire import json

__all__ = ["catalogue", "loss", "metric_options", "metrics"]


def catalogue(families: Mapping[str, Iterable[Mapping[str, Any]]]) -> RenderableType:
    """Return a table of losses, a line each, below the headings of their families."""
    table = Listing("loss", "task")
    for index, (heading, losses) in enumerate(families.items()):
        if heading:
            if index:
                table.add_row()
            table.add_row(Text(heading, style="bold"))
        for description in losses:
            notes = "" if description["available"] else " (not available here)"
            table.add_row(description["name"], description["task"], text=_prose(description["summary"] + notes))
    return table


def loss(description: Mapping[str, Any]) -> RenderableType:
    """Return a loss's formula, guide, inputs, parameters and references."""
    inputs = Listing("inputs", "shape")
    for entry in description["inputs"]:
        marks = [mark for mark in ("differentiable", "optional") if entry[mark]]
        notes = f" ({', '.join(marks)})" if marks else ""
        shapes = " or ".join(t["shape"] for t in entry["types"])
        inputs.add_row(entry["name"], shapes, text=_prose(entry["summary"] + notes))
    if description["inputs_of_terms"]:
        inputs.add_row("those of the terms", text="Under the names that the terms' inputs give them.")
    parameters = Listing("parameters", "default")
    for name, schema in description["parameters"].items():
        default = json.dumps(schema["default"]).decode() if "default" in schema else "required"
        parameters.add_row(name, default, text=_prose(schema.get("description", "")))
    parts: list[RenderableType] = [
        Text(description["name"], style="bold") + Text(f"  {description['task']}", style="dim not bold"),
        _prose(description["summary"]),
        *([] if description["available"] else [Text(description["unavailable_because"], style="yellow")]),
        Padding(Text(description["formula"], style="cyan"), (1, 0), expand=False),
        *_guide(description["guide"]),
        inputs,
        Padding(parameters, (1, 0), expand=False),
        *map(_prose, description["references"]),
    ]
    return Group(*parts)


def _guide(guide: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what a guide says, and a table of the formula's symbols."""
    texts = Table.grid(padding=(0, 2))
    texts.add_column(style="dim", no_wrap=True)
    named = ("in short", "idea"), ("when", "use"), ("when not", "avoid"), ("mistake", "mistake")
    for heading, name in named:
        texts.add_row(heading, _prose(guide[name]))
    yield Padding(texts, (0, 0, 1, 0), expand=False)
    symbols = Listing("symbol")
    for symbol, text in guide["symbols"].items():
        symbols.add_row(symbol, text=_prose(text))
    yield Padding(symbols, (0, 0, 1, 0), expand=False)


def metrics(found: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return a table of metrics, a line each, below the headings of their tasks."""
    table = Listing("metric", "by default")
    last = ""
    for entry in found:
        if entry["task"] != last:
            if last:
                table.add_row()
            table.add_row(Text(entry["task"], style="bold"))
        table.add_row(entry["name"], "yes" if entry["default"] else "", text=_prose(entry["summary"]))
        last = entry["task"]
    return table


def metric_options(fields: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Return a table of the metrics' options, given their names and JSON Schemas."""
    table = Listing("option", "default")
    for name, field in fields.items():
        table.add_row(name, json.dumps(field["default"]).decode(), text=_prose(field["description"]))
    return table


def _prose(text: str) -> Text:
    return Text(text.replace("`", ""))
