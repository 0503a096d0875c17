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
    "threads": "cores - 1",
    "queue_bytes": ByteSize(4 << 30),
    "cache_bytes": ByteSize(1 << 30),
}


def families() -> str:
    """Every loss, for those who know what they look for."""
    return "\n".join(
        f"- {name}: {', '.join(f'`{loss.name}`' for loss in members)}" for name, members in by_family().items()
    )


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
                for loss in members
            ),
        )
        for heading, members in by_family().items()
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
        return [
            f"`{{{', '.join(json.dumps(name) + ': ' + field['type'] for name, field in arm['properties'].items())}}}`"
        ]
    if arm["type"] != "array":
        return [arm["type"]]
    items = arm["items"]
    return [f"list of {items['type']}s" if "type" in items else "list of these"]


def _bounds(arm: Mapping[str, Any]) -> list[str]:
    """The limits of a schema's numbers, and of how many there are."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [
        f"{sign} {part[key]:g}" for part in (arm, arm.get("items", {})) for key, sign in signs.items() if key in part
    ]
    return [*limits, *([f"{arm['minItems']} to {arm['maxItems']} of them"] if "minItems" in arm else [])]


GROUPS: Mapping[str, tuple[str, ...]] = {
    "Address": ("host", "port", "uds", "uds_mode", "root_path", "allowed_hosts", "cors_origins"),
    "Device and processes": (
        "device", "threads", "engine", "fronts", "poll_us", "worker_timeout_ms", "compiled", "cache_dir",
        "perceptual_weights",
    ),
    "Sizes": (
        "max_body_bytes", "max_json_bytes", "queue_bytes", "queue_requests", "requests_per_key", "batch_bytes",
        "stream_bytes", "cache_bytes", "max_work_ms", "max_connections",
    ),
    "Times": (
        "request_timeout_ms", "max_timeout_ms", "idle_timeout_ms", "min_body_bytes_per_s", "keep_alive_timeout_ms",
        "drain_timeout_ms", "lame_duck_ms",
    ),
    "Shared memory": ("shared_memory", "shared_memory_regions", "shared_memory_bytes"),
    "Keys and TLS": (
        "api_keys_file", "api_key", "metrics_public", "tls_cert", "tls_key", "tls_key_password", "tls_client_ca",
    ),
    "Runs": (
        "runs", "runs_per_key", "run_bytes", "runs_bytes_per_key", "runs_keep_open_days", "runs_keep_days",
    ),
    "Log": ("log_level", "log_format", "access_log", "access_log_per_s", "tracing"),
}  # fmt: skip
"""The headings of the settings' page; a setting of no group stands at its end."""


def settings() -> str:
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "Others": [name for name in Settings.model_fields if name not in grouped]}
    return "\n\n".join(f"## {heading}\n\n{_settings(names)}" for heading, names in groups.items() if names)


def _settings(names: Iterable[str]) -> str:
    rows = []
    for name in names:
        setting = Settings.model_fields[name]
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
