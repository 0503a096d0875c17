"""Batches as a worker reports them. A row's number gives its prediction and target, so a run has one right state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from lossd import Run
from lossd.recorder.store import NewBatch, Store
from lossd.runs import encoding
from lossd.runs.report import BatchReport
from lossd_client.errors import Problem

METRICS = ("accuracy", "auroc", "log_loss")


def document(identity: str = "position", **further: Any) -> dict[str, Any]:
    """A definition as the store keeps it."""
    fields = {"task": "binary", "metrics": {"names": list(METRICS)}, "identity": identity, "dataset": {}, "tags": {}}
    return {**fields, "public": False, **further}


@cache
def state(
    identity: str, rows: tuple[int, ...], *, task: str = "binary", classes: int = 3, groups: int | None = None
) -> bytes:
    """The bytes of the state of rows; by position they are consecutive.

    Rows without an identity have no groups, because these would follow from the batches' names.
    """
    groups = (0 if identity == "batch" else 64) if groups is None else groups
    metrics = METRICS if task == "binary" else ["accuracy"]
    run = Run(task=task, metrics=metrics, identity=identity, groups=groups)  # type: ignore[arg-type]
    numbers = np.array(rows, np.int64)
    target = (numbers * 7 % 5 < 2).astype(np.int64)
    if task == "binary":
        prediction = np.sin(numbers * 1.7).astype(np.float32)
    else:
        prediction = np.sin(numbers[:, None] * 1.7 + np.arange(classes)).astype(np.float32)
    places = {"position": {"first": rows[0] if rows else 0}, "id": {"sample_id": numbers}, "batch": {}}
    run.add(prediction, target, **places[identity])
    return run.state()


def report(identity: str, rows: Sequence[int], content: int = 0, **how: Any) -> bytes:
    """What a worker reports of rows; another ``content`` has another digest."""
    digest = hashlib.sha256(repr((list(rows), content)).encode()).digest()
    return report_of(digest, len(rows), state(identity, tuple(rows), **how))


def report_of(digest: bytes, rows: int, data: bytes) -> bytes:
    """What a worker reports of rows with a digest and the bytes of a state."""
    described, parts, _ = encoding.decode(data)
    text = encoding.text_of(described)
    return BatchReport(digest, rows, rows, text, parts["identity"], encoding.packed(data)).encode()


def batch(
    run: str, name: str, rows: Sequence[int], identity: str = "position", content: int = 0, **how: Any
) -> NewBatch:
    """A batch to be counted."""
    return NewBatch(run, name, report(identity, rows, content, **how), "cpu", "1.0")


def count_one(store: Store, new: NewBatch) -> dict[str, Any]:
    """Count a batch, and return its outcome or raise its problem."""
    (outcome,) = store.count([new])
    if isinstance(outcome, Problem):
        raise outcome
    return outcome
