"""The names a shell completes: losses, metrics, tasks, and the parameters of a loss.

To ask the catalogue costs the import of torch, seconds that nobody waits for after a Tab. So they are noted in the
user's cache, for as long as the losses and metrics stay the same.
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
    """``{"losses": {name: description}, "metrics": {task: names}}``."""
    cache, state = user_cache(), _state()
    if cache is None:
        return _found()
    note = cache / "names.json"
    with suppress(OSError, ValueError, AttributeError):
        noted: Mapping[str, Any] = json.loads(note.read_text())
        if noted.get("state") == state:
            return noted
    found = {"state": state, **_found()}
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
            json.dump(found, file)
        os.replace(file.name, note)
    return found


def _state() -> list[str]:
    package = Path(lossd.__file__).parent
    files = sorted([*package.glob("losses/*.py"), *package.glob("metrics/*.py")])
    return [lossd.__version__, *(f"{file.stem} {file.stat().st_mtime_ns}" for file in files)]


def _found() -> dict[str, Any]:
    from lossd.api.catalogue import describe_loss
    from lossd.losses import REGISTRY
    from lossd.metrics import METRICS

    def brief(of: Mapping[str, Any]) -> dict[str, Any]:
        return {field: of[field] for field in ("summary", "task", "parameters")}

    return {
        "losses": {name: brief(describe_loss(loss)) for name, loss in REGISTRY.items()},
        "metrics": {task: list(of_task) for task, of_task in METRICS.items()},
    }


def losses(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Losses that begin so."""
    found = known()["losses"].items()
    return [CompletionItem(name, help=of["summary"]) for name, of in found if name.startswith(incomplete)]


def tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Tasks that begin so."""
    return [CompletionItem(name) for name in known()["metrics"] if name.startswith(incomplete)]


def metrics(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Metrics of the task in question, for the last of the names between commas."""
    by_task = known()["metrics"]
    task = ctx.params.get("task") or (ctx.obj["task"] if ctx.obj else None)
    names = by_task.get(task) or list(dict.fromkeys(name for of_task in by_task.values() for name in of_task))
    before, comma, begun = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(begun)]
