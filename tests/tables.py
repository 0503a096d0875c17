"""The documentation's tables that are written from the code: ``make docs`` writes them, a test keeps them current."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ByteSize

from lossd.api.catalogue import describe_options
from lossd.configuration.settings import Settings
from lossd.evaluation.diagnostics import WARNINGS
from lossd.losses import REGISTRY
from lossd.losses.families import by_family
from lossd.metrics import METRICS, TASKS
from lossd_client.errors import PROBLEMS

ROOT = Path(__file__).parents[1]

MACHINE_DEFAULTS = {
    "threads": "one less than there are cores",
    "queue_bytes": ByteSize(4 << 30),
    "cache_bytes": ByteSize(1 << 30),
}


def families() -> str:
    """Every loss, for those who know what they look for."""
    return "\n".join(f"- {name}: {', '.join(f'`{loss.name}`' for loss in of)}" for name, of in by_family().items())


def counts() -> str:
    """How many losses and metrics there are."""
    names = {name for of_task in METRICS.values() for name in of_task}
    return (
        f"- {len(REGISTRY)} losses and {len(names)} metrics, each tested against an independent reference: PyTorch, "
        "scikit-learn,\n  XGBoost, LightGBM, or a float64 implementation of the paper."
    )


def losses() -> str:
    return "\n\n".join(
        f"## {heading}\n\n"
        + _table(
            ("Loss", "Task", "", "Parameters"),
            (
                (f"`{loss.name}`", loss.task, _code(loss.summary), ", ".join(f"`{p.name}`" for p in loss.parameters))
                for loss in of
            ),
        )
        for heading, of in by_family().items()
    )


def metrics() -> str:
    return _table(
        ("Task", "By default", "By name"),
        (
            (
                f"`{task}`",
                ", ".join(f"`{m.name}`" for m in of_task.values() if m.default),
                ", ".join(f"`{m.name}`" for m in of_task.values() if not m.default),
            )
            for task, of_task in METRICS.items()
        ),
    )


def metric_options() -> str:
    """Every option of the request's object of metrics, from its schema, and what reads it."""
    rows = []
    for name, field in describe_options().items():
        alone = {task for task, cls in TASKS.items() if cls.inputs({name: True}) != cls.inputs({name: False})}
        of_tasks = [f"`{task}`" for task, cls in TASKS.items() if name in cls.options or task in alone]
        of_metrics = dict.fromkeys(
            f"`{m.name}`" for of_task in METRICS.values() for m in of_task.values() if name in m.options
        )
        all_of = ["all"] if len(of_tasks) == len(TASKS) else [f"all of {', '.join(of_tasks)}"] if of_tasks else []
        read_by = [*of_metrics, *all_of]
        arms = field.get("anyOf", [field])
        values = [value for arm in arms for value in _values(arm)]
        bounds = ", ".join(dict.fromkeys(bound for arm in arms for bound in _bounds(arm)))
        default = f"`{json.dumps(field['default'])}`"
        rows.append((f"`{name}`", " or ".join(values), default, bounds, field["description"], ", ".join(read_by)))
    return _table(("Option", "Value", "Default", "Bounds", "", "Read by"), rows)


def _values(arm: Mapping[str, Any]) -> list[str]:
    """What a schema takes."""
    if "enum" in arm or "const" in arm:
        return [f"`{json.dumps(value)}`" for value in arm.get("enum", [arm.get("const")])]
    if arm["type"] == "object":
        return [f"`{{{', '.join(json.dumps(name) + ': ' + of['type'] for name, of in arm['properties'].items())}}}`"]
    if arm["type"] != "array":
        return [arm["type"]]
    items = arm["items"]
    return [f"list of {items['type']}s" if "type" in items else "list of these"]


def _bounds(arm: Mapping[str, Any]) -> list[str]:
    """The limits of a schema's numbers, and of how many there are."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {of[key]:g}" for of in (arm, arm.get("items", {})) for key, sign in signs.items() if key in of]
    return [*limits, *([f"{arm['minItems']} to {arm['maxItems']} of them"] if "minItems" in arm else [])]


def settings() -> str:
    rows = []
    for name, setting in Settings.model_fields.items():
        default = MACHINE_DEFAULTS.get(name, setting.default)
        if isinstance(default, ByteSize):
            default = default.human_readable().replace(".0", "")
        elif name not in MACHINE_DEFAULTS:
            default = "" if default is None else f"`{default}`"
        choices = get_args(setting.annotation) if get_origin(setting.annotation) is Literal else ()
        among = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        rows.append((f"`LOSSD_{name.upper()}`", default, f"{setting.description}{among}"))
    return _table(("Setting", "Default", ""), rows)


def problems() -> str:
    return _table(
        ("Status", "`type`", ""),
        (
            (
                str(kind.status),
                f"`/problems/{kind.slug}`",
                _code((inspect.getdoc(kind) or "").partition("\n")[0]),
            )
            for kind in PROBLEMS.values()
        ),
    )


def _code(text: str) -> str:
    return text.replace("``", "`")  # reStructuredText to Markdown


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def warnings() -> str:
    return _table(("Code", "What it means"), ((f"`{code}`", text) for code, text in WARNINGS.items()))


SECTIONS: dict[str, Callable[[], str]] = {
    "counts": counts,
    "families": families,
    "losses": losses,
    "metrics": metrics,
    "metric options": metric_options,
    "settings": settings,
    "problems": problems,
    "warnings": warnings,
}


def filled(text: str) -> str:
    """The text with every table between its markers written anew."""
    for name, section in SECTIONS.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if begin and not end:
            raise ValueError(f"<!-- {name} --> needs its <!-- /{name} -->")
        text = f"{before}{begin}{section()}\n{end}{after}" if begin else text
    return text


def documents() -> list[Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


if __name__ == "__main__":
    for path in documents():
        path.write_text(filled(path.read_text()))
