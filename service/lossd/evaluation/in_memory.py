"""Evaluate a batch in the memory that holds its tensors: a slab, or memory with the same layout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
import torch

from lossd.compiled.passes import Passes
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import columns_in
from lossd.evaluation.evaluate import evaluate
from lossd.job import Recipe
from lossd_client.errors import Problem

__all__ = ["Text", "evaluate_in_memory", "texts_of"]

Text = tuple[bool, bytes]
"""Whether a request failed, and the JSON of its answer or of its problem; the report of a run's batch is no JSON."""

AnswerBatch = Callable[[TensorBatch, Passes | None], Iterable[dict[str, Any] | bytes | Problem]]


def evaluate_in_memory(
    manifest: Mapping[str, Any],
    memory: Any,
    device: torch.device,
    passes: Passes | None = None,
    answer: AnswerBatch = evaluate,
) -> tuple[list[Text], int]:
    """Return the text of each request's answer in order, and the evaluation's time in ns.

    Args:
        manifest: ``recipe``, the rows and the numbers of each request, and the offset of each column in bytes.
        memory: A writable buffer that holds the columns.
        device: The device that computes.
        passes: The compiled passes to use on a CPU, if any.
        answer: Returns the answer of each request of the batch.

    Raises:
        RuntimeError: The device is broken.
    """
    begin = time.perf_counter_ns()
    recipe = Recipe.parse(manifest["recipe"])
    rows: list[int] = manifest["rows"]
    inputs, answers = columns_in(memory, recipe, manifest["offsets"], sum(rows), len(rows))
    texts = texts_of(answer(TensorBatch(recipe, rows, manifest["numbers"], inputs, answers, device), passes))
    return texts, time.perf_counter_ns() - begin


def texts_of(outcomes: Iterable[dict[str, Any] | bytes | Problem]) -> list[Text]:
    """Return the outcome of each request as JSON; bytes as they are."""
    return [
        (True, orjson.dumps(outcome.to_json()))
        if isinstance(outcome, Problem)
        else (False, outcome if isinstance(outcome, bytes) else orjson.dumps(outcome))
        for outcome in outcomes
    ]
