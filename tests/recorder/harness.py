"""What the recorder's tests share: a recorder's process with its keeper and a client, a run, and batches of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import lossd
from lossd.configuration.settings import Settings
from lossd.recorder import faults
from lossd.recorder.client import Recorder
from lossd.recorder.keeper import Keeper
from lossd.runs.definition import RunDocument
from recorder.reports import report_of

ROWS = 8
"""Rows of a batch."""

DEFINITION = RunDocument.parse({"task": "binary", "metrics": ["accuracy", "log_loss"], "identity": "position"})


def empty() -> lossd.Run:
    """A run without a batch."""
    return lossd.Run(task="binary", metrics=["accuracy", "log_loss"], identity="position")


@cache
def evaluated(number: int) -> lossd.Run:
    """A run of one batch: rows ``number * ROWS`` and on, with scores and targets of its own. Do not change it."""
    random = np.random.default_rng(number)
    run = empty()
    scores, targets = random.normal(size=ROWS), random.integers(0, 2, ROWS)
    run.add(scores, targets, first=number * ROWS)
    return run


@cache
def report(number: int) -> bytes:
    """What a worker reports of that batch."""
    return report_of(number.to_bytes(32, "big"), ROWS, evaluated(number).state())


@cache
def merged(batches: int) -> bytes:
    """The state of the run of so many batches, counted without any recorder."""
    whole = empty()
    for number in range(batches):
        whole.merge(evaluated(number))
    return whole.state()


def soon(seconds: float = 60.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


@asynccontextmanager
async def recording(folder: Path, **settings: Any) -> AsyncIterator[tuple[Recorder, Keeper]]:
    """A client and the keeper of a recorder that writes into a folder; nothing is left when the block ends."""
    chosen = Settings(**({"runs": str(folder / "runs.db")} | settings))
    keeper = Keeper(chosen)
    recorder = Recorder(keeper.address, int(chosen.run_bytes))
    keeper.start()
    try:
        yield recorder, keeper
    finally:
        await recorder.close()
        await keeper.stop()


async def create(recorder: Recorder, name: str = "a") -> str:
    """Create a run, and return its id."""
    (record, _), _ = await recorder.ask(
        "create", soon(), owner="", name=name, document=DEFINITION.to_dict(), digest=DEFINITION.digest
    )
    return str(record["id"])


async def count(recorder: Recorder, run: str, number: int, *, deadline: float | None = None) -> dict[str, Any]:
    """Count a batch."""
    outcome, _ = await recorder.ask(
        "count", deadline or soon(), report(number), run=run, name=f"{number}", device="cpu", build="1"
    )
    return dict(outcome)


async def counted(recorder: Recorder, run: str) -> list[str]:
    """The names of all batches of a run."""
    names: list[str] = []
    after = None
    while True:
        page, _ = await recorder.ask("batches", soon(), run=run, after=after, limit=1000)
        names += [batch["name"] for batch in page["batches"]]
        after = page["next"]
        if after is None:
            return names


async def one_will_die(recorder: Recorder, keeper: Keeper, point: str, occurrence: int = 1) -> None:
    """Start a recorder that kills itself at a point; those after it live."""
    os.environ[faults.VARIABLE] = f"{point}:{occurrence}"
    try:
        await recorder.ask("list", soon(), owner="")
        assert keeper.pid is not None
    finally:
        del os.environ[faults.VARIABLE]


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.005)
