"""Names for shell completion: losses, metrics, tasks, and the parameters of a loss.

The catalogue needs seconds to import torch, too long for a Tab. So the names are stored in the user's cache until a
loss or a metric changes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import lossd
from lossd.configuration.folders import user_cache

__all__ = ["known", "losses", "metrics", "tasks"]


def known() -> Mapping[str, Any]:
    """Return ``{"losses": {name: description}, "metrics": {task: names}}``."""
    cache, state = user_cache(), _state()
    if cache is None:
        return _found()
    cache_file = cache / "names.json"
    with suppress(OSError, ValueError, AttributeError):
        cached: Mapping[str, Any] = json.loads(cache_file.read_text())
        if cached.get("state") == state:
            return cached
    found = {"state": state, **_found()}
    with suppress(OSError):
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache_file.parent, delete=False) as file:
            json.dump(found, file)
        os.replace(file.name, cache_file)
    return found


def _state() -> list[str]:
    package = Path(lossd.__file__).parent
    files = sorted([*package.glob("losses/*.py"), *package.glob("metrics/*.py")])
    return [lossd.__version__, *(f"{file.stem} {file.stat().st_mtime_ns}" for file in files)]


def _found() -> dict[str, Any]:
    from lossd.api.catalogue import describe_loss
    from lossd.losses import REGISTRY
    from lossd.metrics import METRICS

    def brief(description: Mapping[str, Any]) -> dict[str, Any]:
        return {field: description[field] for field in ("summary", "task", "parameters")}

    return {
        "losses": {name: brief(describe_loss(loss)) for name, loss in REGISTRY.items()},
        "metrics": {task: list(names) for task, names in METRICS.items()},
    }


def losses(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the losses whose names begin with the incomplete word."""
    found = known()["losses"].items()
    return [
        CompletionItem(name, help=description["summary"]) for name, description in found if name.startswith(incomplete)
    ]


def tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the tasks whose names begin with the incomplete word."""
    return [CompletionItem(name) for name in known()["metrics"] if name.startswith(incomplete)]


def metrics(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the metrics of the command's task that complete the last of several names between commas."""
    by_task = known()["metrics"]
    task = ctx.params.get("task") or (ctx.obj["task"] if ctx.obj else None)
    names = by_task.get(task) or list(dict.fromkeys(name for task_names in by_task.values() for name in task_names))
    before, comma, begun = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(begun)]
