"""What a batch contributes to a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.evaluate import evaluate, measure
from lossd.job import Recipe
from lossd.metrics.parts import Amounts, Contribution, part_of
from lossd.metrics.registry import METRICS, TASKS, Array, Task, View
from lossd.runs.facts import Facts
from lossd.runs.fingerprint import Fingerprint
from lossd_client.errors import Problem

__all__ = ["COVERED", "LOSS", "OF_BATCH", "WEIGHT", "Measured", "fingerprints", "measured"]

LABELS = ("target", "label", "similar")
"""The inputs that say what is true."""

COVERED = (*LABELS, "sample_weight")
"""The inputs that the fingerprint of the targets covers."""

LOSS, WEIGHT, OF_BATCH = "loss", "weight", "batch."

Measured = tuple[Facts, dict[str, Contribution]]
"""What a batch has in common with others, and what it contributes."""


def measured(batch: TensorBatch) -> list[Measured]:
    """Return what each request of a batch contributes.

    Args:
        batch: The batch; one request unless its recipe is of the kind rows. Its definition is checked.

    Raises:
        Problem: A request is wrong.
    """
    recipe, requests = batch.recipe, range(len(batch.rows))
    weighted = "sample_weight" in batch.inputs
    with torch.no_grad(), np.errstate(all="ignore"):  # non-finite values are valid results
        view, values = measure(batch)
        loss = None if values is None else (values.numerators.numpy(), values.denominators.numpy())
        if loss is None and recipe.want_loss:
            loss = _reduction(batch)
        found: list[dict[str, Contribution]] = [{} for _ in requests]
        stops = list(itertools.accumulate(batch.rows))
        for request, (stop, rows) in enumerate(zip(stops, batch.rows, strict=True)):
            own = slice(stop - rows, stop)
            if loss is not None:
                found[request][f"{LOSS}.sum"] = Amounts(loss[0][own], None, ())
                found[request][f"{LOSS}.size"] = Amounts(loss[1][own], None, ())
            if weighted:
                weights = batch.inputs["sample_weight"][own].double().numpy(force=True)
                found[request][WEIGHT] = Amounts(weights, None, ())
        task = None
        if view is not None:
            task = TASKS[str(recipe.task)](view)
            for request, contributions in enumerate(_contributions(task, view, recipe)):
                found[request] |= contributions
    facts = _facts(recipe, task, weighted)
    return [(facts, contributions) for contributions in found]


def fingerprints(
    lengths: Sequence[int], inputs: Mapping[str, Array], *, firsts: Sequence[int] | None, sample_id: Array | None
) -> Sequence[Fingerprint | None]:
    """Return the fingerprint of each batch's targets; None if they have none.

    Args:
        lengths: The rows of each batch.
        inputs: The inputs of ``COVERED`` by name, as they were sent, of all batches one after the other.
        firsts: The position of the first row of each batch, if rows are identified by position.
        sample_id: Integers, one a row, if rows are identified by id.
    """
    labels = {name: inputs[name] for name in LABELS if name in inputs}
    if not labels:
        return [None] * len(lengths)
    if len(lengths) == 1:  # a loss without an axis of rows, such as an expression, makes one row of a batch
        labels = {name: label if label.shape[:1] == (lengths[0],) else label[None] for name, label in labels.items()}
    weight = inputs.get("sample_weight")
    return Fingerprint.each(lengths, labels, sample_weight=weight, firsts=firsts, sample_id=sample_id)


def _contributions(task: Task, view: View, recipe: Recipe) -> list[dict[str, Contribution]]:
    """Return what each request of a view contributes, given its task."""
    known, cls = METRICS[str(recipe.task)], type(task)
    found: list[dict[str, Contribution]] = [{} for _ in range(task.count)]
    reads = [part for name in recipe.metrics for part in known[name].reads or ()]
    alone: list[Task] = []
    for name in dict.fromkeys([*task.base, *task.warning_parts(recipe.metrics), *reads]):
        part = part_of(cls, name)
        if part.divisible or task.count == 1:
            parts = part.contributions(task)
        else:
            alone = alone or [cls(single) for single in view.each()]
            parts = [own for single in alone for own in part.contributions(single)]
        for contributions, own in zip(found, parts, strict=True):
            for key, contribution in own.items():
                contributions[f"{name}.{key}"] = contribution
    for name in recipe.metrics:
        if known[name].reads is None:
            for contributions, value in zip(found, known[name].function(task), strict=True):
                contributions[f"{OF_BATCH}{name}.sum"] = Amounts(np.array([float(value or 0)]), None, ())
                contributions[f"{OF_BATCH}{name}.size"] = Amounts(np.array([value is not None], np.int64), None, ())
    return found


def _facts(recipe: Recipe, task: Task | None, weighted: bool) -> Facts:
    view = None if task is None else task.view
    return Facts(
        names=tuple(recipe.metrics),
        classes=getattr(task, "classes", None),
        activation="real" if view is None else view.activation,
        weighted=weighted,
        dtypes={} if view is None else {name: view.sent(name) for name in view.tensors},
    )


def _reduction(batch: TensorBatch) -> tuple[Array, Array]:
    """Return numerator and denominator of one request's loss that is no mean over rows, (1,) each."""
    [answer] = evaluate(batch._replace(recipe=replace(batch.recipe, metrics=(), gradients=())))
    if isinstance(answer, Problem):
        raise answer
    reduction = answer["reduction"]
    return np.array([float(reduction["numerator"])]), np.array([float(reduction["denominator"])])
