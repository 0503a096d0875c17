"""A row's metrics are the same bits in any batch, in any order and on any number of threads.

A data set's are made of them, whatever requests it was split into.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from losses.test_splitting import SHARED, threads
from metrics.measuring import Request, measure
from metrics.tables import TABLES, Table

OF_MANY = ("brier", "log_loss", "ece", "reliability", "top_k_accuracy", "accuracy")
"""Metrics of class scores that no list or matrix of tens of thousands of classes answers."""


def of_long_rows(table: Table) -> list[str]:
    """The metrics of a table that rows of tens of thousands of entries have."""
    if table.task in ("labelled_embeddings", "paired_views", "boxes", "preferences"):
        return []
    return [name for name in table.oracles if table.task not in ("multiclass", "multilabel", "sets") or name in OF_MANY]


def single(request: Request) -> list[Request]:
    """Each row as a request."""
    rows = len(next(iter(request.values())))
    return [{name: array[row : row + 1] for name, array in request.items()} for row in range(rows)]


def drawn(table: Table, dtype: str) -> Request:
    _, request = next(table.requests(11))
    return {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in request.items()}


def assert_alike(table: Table, names: list[str], requests: list[Request], count: int = 1) -> None:
    """Fail unless rows are the same alone and together, in their order and in another one on ``count`` threads."""

    def measured(order: Sequence[int]) -> dict[int, Any]:
        of_order = measure(table.task, [requests[i] for i in order], names, activation=table.activation)
        return dict(zip(order, of_order, strict=True))

    rows = range(len(requests))
    # Of many rows each fifth, which is by turns at every place of a CPU's vector; of long ones the first and the last.
    apart = rows[:: 5 if len(rows) > 5 else min(count, 2)]
    with threads(1):
        expected = {i: of_row for row in apart for i, of_row in measured([row]).items()}
        together = measured(rows)
    assert {i: together[i] for i in apart} == expected
    with threads(count):
        assert measured(np.random.default_rng(0).permutation(len(rows)).tolist()) == together
        if count > 1:
            assert measured([0]) == {0: expected[0]}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.task)
def test_a_row_is_the_same_in_any_batch(table: Table, dtype: str) -> None:
    """Of 23 rows at most, whose entries leave some over of a CPU's vectors."""
    assert_alike(table, list(table.oracles), single(drawn(table, dtype))[:23])


@pytest.mark.parametrize("table", list(filter(of_long_rows, TABLES)), ids=lambda table: table.task)
def test_a_long_row_is_the_same_in_any_batch_and_on_any_number_of_threads(table: Table) -> None:
    short = drawn(table, "float32")
    times = SHARED // min(array[0].size for array in short.values() if array.ndim > 1) + 5

    def longer(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if array.ndim == 1:
            return array[:3]
        tiled = np.tile(array[:3], times)
        return tiled * np.linspace(0.5, 1, tiled.shape[-1]).astype(array.dtype) if array.dtype.kind == "f" else tiled

    request = {key: longer(array) for key, array in short.items()}
    assert_alike(table, of_long_rows(table), single(request), 3)
