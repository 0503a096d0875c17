"""What a batch contributes to a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.evaluate import evaluate, measure
from lossd.job import Recipe
from lossd.metrics.contributions import Amounts, Contribution
from lossd.metrics.parts import part_of
from lossd.metrics.registry import METRICS, TASKS, Array, Task
from lossd.runs import totals
from lossd.runs.facts import Facts
from lossd.runs.rows.fingerprint import Fingerprint
from lossd.runs.rows.slots import Placement
from lossd.runs.totals import RunTotal
from lossd_client.errors import Problem

__all__ = ["COVERED", "GROUP", "LOSS", "OF_BATCH", "WEIGHT", "entries_of", "entries_of_row", "fingerprints", "measured"]

LABELS = ("target", "label", "similar")
"""The inputs that say what is true."""

BY_CLASS = ("multiclass", "segmentation")
"""The tasks whose targets may be distributions over the classes."""

MASKS = ("mask", "element_weight", "lengths")
"""The inputs that say which entries count."""

COVERED = (*LABELS, *MASKS, "sample_weight")
"""The inputs that the fingerprint of the targets covers."""

LOSS, WEIGHT, OF_BATCH = "loss", "weight", "batch."

GROUP = "group"
"""The name under which a fingerprint covers the rows' groups."""


def measured(
    batch: TensorBatch, placement: Placement, limit: int, kernels: CountingKernels = NO_KERNELS
) -> tuple[Facts, list[dict[str, RunTotal]]]:
    """Return what the requests of a batch have in common, and the totals that each contributes.

    Args:
        batch: The batch; one request unless its recipe is of the kind rows. Its definition is checked.
        placement: Where the rows of each request are counted.
        limit: The most rows of the tables of one part.
        kernels: The compiled functions that count, by name; those at hand. Only integers are counted with them, so that
            no bit of a sum depends on whether they are.

    Raises:
        Problem: A request is wrong.
    """
    recipe = batch.recipe
    weighted = "sample_weight" in batch.inputs
    of_rows: dict[str, Contribution] = {}
    of_requests: dict[str, Contribution] = {}
    with torch.no_grad(), np.errstate(all="ignore"):  # non-finite values are valid results
        view, values = measure(batch)
        place = placement.combinations.index
        if values is not None:
            of_rows[f"{LOSS}.sum"] = Amounts(values.numerators.numpy(), None, (), place)
            of_rows[f"{LOSS}.size"] = Amounts(values.denominators.numpy(), None, (), place)
        elif recipe.want_loss:
            numerator, denominator = _reduction(batch)
            of_requests[f"{LOSS}.sum"] = Amounts(numerator, None, (), None)
            of_requests[f"{LOSS}.size"] = Amounts(denominator, None, (), None)
        if weighted:
            weights = batch.inputs["sample_weight"].double().numpy(force=True).ravel()
            of_rows[WEIGHT] = Amounts(weights, None, (), place)
        task = None
        if view is not None:
            counting: CountingKernels = {"highest": kernels["highest"]} if "highest" in kernels else {}
            task = TASKS[str(recipe.task)](view._replace(combinations=placement.combinations, kernels=counting))
            of_rows |= _contributions(task, recipe)
            of_requests |= _of_whole_batches(task, recipe)
        found: list[dict[str, RunTotal]] = [{} for _ in batch.rows]
        whole = placement.whole if of_requests else placement
        for contributions, scope in ((of_rows, placement), (of_requests, whole)):
            for key, contribution in contributions.items():
                for request, total in zip(found, totals.each(contribution, scope, limit), strict=True):
                    request[key] = total
    return _facts(recipe, task, weighted), found


def entries_of(recipe: Recipe, rows: int, inputs: Mapping[str, Array]) -> int:
    """Return the number of labels in a batch.

    Labels equal to ``ignore_index`` do not count. A distribution over the classes is one label. Without labels, each
    row counts as one.

    Args:
        recipe: The recipe of the batch.
        rows: The batch's rows.
        inputs: Its inputs as they were sent.
    """
    truth = next((inputs[name] for name in LABELS if name in inputs), None)
    keep = _kept(recipe, rows, inputs)
    if truth is None:
        return rows if keep is None else int(np.count_nonzero(keep))
    by_class = recipe.task in BY_CLASS and recipe.domains.get("target") == "probability"
    if keep is None and by_class:
        return truth.size // int(recipe.classes or 1)
    ignored = recipe.parameters.get("ignore_index")
    if ignored is not None and not by_class:
        counted = truth != ignored
        keep = counted if keep is None or keep.shape != counted.shape else keep & counted
    return truth.size if keep is None else int(np.count_nonzero(keep))


def entries_of_row(recipe: Recipe) -> int | None:
    """Return how many entries of each row :func:`entries_of` counts; None if that depends on the inputs."""
    columns = {column.name: column for column in recipe.inputs}
    truth = next((columns[name] for name in LABELS if name in columns), None)
    kept = (
        recipe.nan_inputs or any(name in columns for name in MASKS) or recipe.parameters.get("ignore_index") is not None
    )
    if truth is None or kept or not truth.per_row:
        return None
    by_class = recipe.task in BY_CLASS and recipe.domains.get("target") == "probability"
    return math.prod(truth.trailing) // (int(recipe.classes or 1) if by_class else 1)


def _kept(recipe: Recipe, rows: int, inputs: Mapping[str, Array]) -> Array | None:
    """Return which entries masks, lengths, weights and NaN leave, in the shape of the entries; None if they are all."""
    found: list[Array] = []
    shape = (rows, *recipe.entries) if recipe.kind == "rows" else tuple(recipe.entries)
    for name in ("mask", "element_weight"):
        if name in inputs:
            found.append(inputs[name] != 0)
    if "lengths" in inputs:
        within = np.arange(shape[1]) < inputs["lengths"][:, None]
        found.append(within.reshape(*within.shape, *(1,) * (len(shape) - 2)))
    for name in recipe.nan_inputs:
        if inputs[name].shape == shape and inputs[name].dtype.kind == "f":
            found.append(~np.isnan(inputs[name]))
    if not found:
        return None
    keep: Array = np.broadcast_to(np.logical_and.reduce(np.broadcast_arrays(*found)), shape)
    return keep


def fingerprints(
    lengths: Sequence[int],
    inputs: Mapping[str, Array],
    *,
    firsts: Sequence[int] | None,
    sample_id: Array | None,
    groups: Array | None = None,
    kernels: CountingKernels = NO_KERNELS,
) -> Sequence[Fingerprint | None]:
    """Return the fingerprint of each batch's targets; None if they have none.

    Args:
        lengths: The rows of each batch.
        inputs: The inputs of ``COVERED`` by name, as they were sent, of all batches one after the other.
        firsts: The position of the first row of each batch, if rows are identified by position.
        sample_id: Integers, one a row, if rows are identified by id.
        groups: The group of each row, if the fingerprint is to cover it.
        kernels: The compiled functions, by name; those at hand.
    """
    labels = {name: inputs[name] for name in LABELS if name in inputs}
    if not labels:
        return [None] * len(lengths)
    labels |= {name: inputs[name] for name in MASKS if name in inputs}
    if len(lengths) == 1:  # a loss without an axis of rows, such as an expression, makes one row of a batch
        labels = {name: label if label.shape[:1] == (lengths[0],) else label[None] for name, label in labels.items()}
    if groups is not None:
        labels[GROUP] = groups
    weight = inputs.get("sample_weight")
    return Fingerprint.each(lengths, labels, sample_weight=weight, firsts=firsts, sample_id=sample_id, kernels=kernels)


def _contributions(task: Task, recipe: Recipe) -> dict[str, Contribution]:
    """Return what the rows of a task contribute."""
    known, cls = METRICS[str(recipe.task)], type(task)
    reads = [part for name in recipe.metrics for part in known[name].reads or ()]
    return {
        f"{name}.{key}": contribution
        for name in dict.fromkeys([*task.base, *task.warning_parts(recipe.metrics), *reads])
        for key, contribution in part_of(cls, name).contributions(task).items()
    }


def _of_whole_batches(task: Task, recipe: Recipe) -> dict[str, Contribution]:
    """Return the metrics that compare the rows of a batch, and whether there are any, one for each request."""
    found: dict[str, Contribution] = {}
    for name in recipe.metrics:
        metric = METRICS[str(recipe.task)][name]
        if metric.reads is None:
            values = list(metric.function(task))
            found[f"{OF_BATCH}{name}.sum"] = Amounts(np.array([float(v or 0) for v in values]), None, (), None)
            found[f"{OF_BATCH}{name}.size"] = Amounts(
                np.array([v is not None for v in values], np.int64), None, (), None
            )
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
