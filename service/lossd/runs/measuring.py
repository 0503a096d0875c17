"""What a batch contributes to a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.evaluate import evaluate, measure
from lossd.job import Recipe
from lossd.metrics.parts import Amounts, Contribution, part_of
from lossd.metrics.registry import METRICS, TASKS, Array, Task
from lossd.runs.facts import Facts
from lossd.runs.fingerprint import Fingerprint
from lossd_client.errors import Problem

__all__ = ["COVERED", "LOSS", "OF_BATCH", "WEIGHT", "Measured", "fingerprint", "measured"]

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
    recipe = batch.recipe
    weighted = "sample_weight" in batch.inputs
    found: list[Measured] = []
    with torch.no_grad(), np.errstate(all="ignore"):  # non-finite values are valid results
        views, values = measure(batch)
        loss = None if values is None else (values.numerators.numpy(), values.denominators.numpy())
        if loss is None and recipe.want_loss:
            loss = _reduction(batch)
        weights = batch.inputs["sample_weight"].double().numpy(force=True) if weighted else None
        first = 0
        for position, count in enumerate(batch.rows):
            rows = slice(first, first + count)
            first += count
            contributions: dict[str, Contribution] = {}
            if loss is not None:
                contributions[f"{LOSS}.sum"] = Amounts(loss[0][rows], None, ())
                contributions[f"{LOSS}.size"] = Amounts(loss[1][rows], None, ())
            if weights is not None:
                contributions[WEIGHT] = Amounts(weights[rows], None, ())
            task = TASKS[str(recipe.task)](views[position]) if views else None
            if task is not None:
                contributions |= _contributions(task, recipe)
            found.append((_facts(recipe, task, weighted), contributions))
    return found


def fingerprint(inputs: Mapping[str, Array], *, first: int | None, sample_id: Array | None) -> Fingerprint | None:
    """Return the fingerprint of a batch's targets; None if it has none.

    Args:
        inputs: The inputs of ``COVERED`` by name, as they were sent.
        first: The position of the first row, if rows are identified by position.
        sample_id: (N,) integers, if rows are identified by id.
    """
    labels = {name: inputs[name] for name in LABELS if name in inputs}
    if not labels:
        return None
    found = Fingerprint()
    found.add(labels, sample_weight=inputs.get("sample_weight"), first=first, sample_id=sample_id)
    return found


def _contributions(task: Task, recipe: Recipe) -> dict[str, Contribution]:
    known = METRICS[str(recipe.task)]
    found: dict[str, Contribution] = {}
    reads = [part for name in recipe.metrics for part in known[name].reads or ()]
    for part in dict.fromkeys([*task.base, *task.warning_parts(recipe.metrics), *reads]):
        for key, contribution in part_of(type(task), part).contributions(task).items():
            found[f"{part}.{key}"] = contribution
    for name in recipe.metrics:
        if known[name].reads is not None:
            continue
        [value] = known[name].function(task)
        sizes = np.array([value is not None], np.int64)
        found[f"{OF_BATCH}{name}.sum"] = Amounts(np.array([float(value or 0)]), None, ())
        found[f"{OF_BATCH}{name}.size"] = Amounts(sizes, None, ())
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
