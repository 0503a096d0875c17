"""Checks of the tensors' entries on the device, before any entry is used as an index.

The common case takes one pass per tensor and one synchronisation per batch: each tensor's smallest and largest entry
decide it. If they fail, the fault is located, its request gets an error, and a harmless entry replaces the bad one, so
that the batch's other requests go on. Dropped rows are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lossd.evaluation.bad_entries import BadEntry, classes_of, explain, explain_beyond, is_xyxy, longest
from lossd.job import Recipe
from lossd.losses.reduction import Segments
from lossd.metrics import TASKS
from lossd_client.errors import DtypeMismatch, InvalidValue, Problem
from lossd_client.wire import DTYPES

__all__ = ["INDICES", "check", "dropped_rows", "harmless", "without_dropped"]

INDICES = ("class", "class_set", "predicted", "integer", "term")
"""Domains whose entries keep their integer dtype; entries of other domains become floats."""

LARGEST = math.nextafter(2.0**63, 0)  # the largest float below the end of int64

UNCHECKED = ("real", "logits", "log_probability", "integer", "term")

HARMLESS = {"sign": 1, "positive": 1, "nonzero": 1, "negative": -1}
"""The entry that replaces one that does not count, by domain; 0 by default."""


def harmless(recipe: Recipe, name: str, tensor: Tensor) -> int:
    """Return the entry that replaces those of an input that do not count; 0 if its dtype has no negative numbers."""
    entry = HARMLESS.get(recipe.domains[name], 0)
    return max(entry, 0) if tensor.dtype in (torch.bool, torch.uint8) else entry


def dropped_rows(weight: Tensor | None) -> Tensor | None:
    """Return which rows (R,) have weight 0; None if none has."""
    dropped = None if weight is None else weight == 0
    return dropped if dropped is not None and bool(dropped.any()) else None


def without_dropped(recipe: Recipe, tensors: Mapping[str, Tensor], dropped: Tensor | None) -> dict[str, Tensor]:
    """Return the tensors with harmless entries in the dropped rows."""
    if dropped is None:
        return dict(tensors)
    rows = {c.name for c in recipe.inputs if c.per_row and c.name != "sample_weight"}

    def filled(name: str, tensor: Tensor) -> Tensor:
        return tensor.masked_fill(dropped.reshape(-1, *(1,) * (tensor.ndim - 1)), harmless(recipe, name, tensor))

    return {name: filled(name, tensor) if name in rows else tensor for name, tensor in tensors.items()}


def check(
    recipe: Recipe, tensors: Mapping[str, Tensor], segments: Segments
) -> tuple[dict[str, Tensor], dict[int, Problem]]:
    """Return the tensors with harmless entries in place of bad ones, and the problem of each request that had one.

    Args:
        recipe: The recipe, with the inputs' ``domains``, ``classes`` and the parameter ``ignore_index``.
        tensors: The inputs to check: (R, ...) if the column counts rows, else (B, ...).
        segments: The rows of each request; one row each if requests are stacked.
    """
    tensors = _without_unjudged(recipe, tensors)
    safe = dict(tensors)
    problems: dict[int, Problem] = {}
    for column in recipe.inputs:
        name, indices = column.name, recipe.domains[column.name] in INDICES
        if name not in tensors:
            continue
        if column.dtype == "uint64" or (column.dtype == "int64" and not indices):
            bad = _beyond(safe[name], unsigned=column.dtype == "uint64", indices=indices)
            _refuse(recipe, name, bad, segments, safe, problems, explain_beyond)
    if recipe.loss is None:
        _refuse_labels(recipe, safe, segments, problems)
    checked = [name for name in tensors if recipe.domains[name] not in UNCHECKED]
    if not checked:
        return safe, problems
    limits = [e for name in checked for e in _extremes(tensors[name])]
    if limits[0].is_cuda:
        extremes = torch.stack([e.to(torch.float64) for e in limits]).tolist()
    else:
        extremes = [float(e) for e in limits]
    for position, name in enumerate(checked):
        low, high = extremes[2 * position : 2 * position + 2]
        if _within(recipe, name, tensors[name], low, high):
            continue
        _refuse(recipe, name, _bad_entries(recipe, name, safe[name]), segments, safe, problems, explain)
    if recipe.loss is None and recipe.classes is not None:
        _refuse_maps(recipe, safe, segments, problems)
    return safe, problems


def _without_unjudged(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors with a harmless class where one is predicted for a target that does not count."""
    ignored = recipe.parameters.get("ignore_index")
    if ignored is None or recipe.domains.get("prediction") != "predicted":
        return tensors
    unjudged = tensors["target"].long() == ignored
    return {**tensors, "prediction": tensors["prediction"].masked_fill(unjudged, 0)}


def _refuse(
    recipe: Recipe,
    name: str,
    bad: Tensor,
    segments: Segments,
    safe: dict[str, Tensor],
    problems: dict[int, Problem],
    explain: Callable[[Recipe, BadEntry], str],
) -> None:
    """Record the problem of each request that has a bad entry, and replace these entries by harmless ones."""
    if not bool(bad.any()):
        return
    rows = bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten().tolist()
    per_row = next(c.per_row for c in recipe.inputs if c.name == name)
    for row in rows:
        request = int(segments.index[row]) if per_row else row
        if request not in problems:
            inner = [int(i) for i in bad[row].nonzero()[0]]
            place = (row - segments.starts[request], *inner) if per_row else tuple(inner)
            problems[request] = InvalidValue(explain(recipe, BadEntry(safe[name], (row, *inner), place, name)))
    safe[name] = safe[name].masked_fill(bad, harmless(recipe, name, safe[name]))


def _refuse_labels(
    recipe: Recipe, tensors: Mapping[str, Tensor], segments: Segments, problems: dict[int, Problem]
) -> None:
    """Record a problem for each request whose integer scores are all 0 or 1: decisions are not scores."""
    integers = {c.name: c.dtype for c in recipe.inputs if DTYPES[c.dtype].kind == "integer"}
    if not integers or recipe.task is None:
        return
    for entry in TASKS[recipe.task].inputs(recipe.metric_options):
        if entry.no_labels and entry.name in integers:
            tensor = tensors[entry.name]
            others = ((tensor != 0) & (tensor != 1)).reshape(len(tensor), -1).sum(1)
            for request, count in enumerate(segments.sum(others).tolist()):
                if not count:
                    problem = DtypeMismatch(
                        f"{entry.name} of the {recipe.task} metrics is {integers[entry.name]} and holds nothing but 0 "
                        f"and 1, {entry.no_labels}"
                    )
                    problems.setdefault(request, problem)


def _refuse_maps(
    recipe: Recipe, tensors: Mapping[str, Tensor], segments: Segments, problems: dict[int, Problem]
) -> None:
    """Record a problem for each request whose integer targets have the shape of scores and are not one-hot."""
    if recipe.domains.get("target") != "probability" or DTYPES[recipe.dtypes["target"]].kind != "integer":
        return
    ones = tensors["target"].sum(1)
    wrong = (ones != 1).reshape(len(ones), -1)
    if "sample_weight" in tensors:
        wrong &= (tensors["sample_weight"] != 0).unsqueeze(1)
    for row in wrong.any(1).nonzero().flatten().tolist():
        request = int(segments.index[row])
        place = ", ".join(map(str, [row - segments.starts[request], ":", *(ones[row] != 1).nonzero()[0].tolist()]))
        found = int(ones[row].reshape(-1)[wrong[row]][0])
        problem = InvalidValue(
            f"one-hot classes along axis 1 expected of integers in the shape of prediction, found {found} "
            f"ones in target[{place}]; for predicted classes, set metrics.classes to their number"
        )
        problems.setdefault(request, problem)


def _beyond(tensor: Tensor, *, unsigned: bool, indices: bool) -> Tensor:
    """Return which integers cannot be computed with: those beyond int64, and for floats those that float64 rounds.

    Args:
        tensor: The entries as int64.
        unsigned: Whether the entries were sent as uint64.
        indices: Whether the entries keep their integer dtype.
    """
    bad = tensor < 0 if unsigned else torch.zeros_like(tensor, dtype=torch.bool)
    return bad if indices else bad | (tensor.double().clamp(max=LARGEST).long() != tensor)


def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    if tensor.dtype == torch.bool:
        tensor = tensor.view(torch.uint8)
    low, high = tensor.aminmax()  # both are NaN if any entry is
    return low, high


def _within(recipe: Recipe, name: str, tensor: Tensor, low: float, high: float) -> bool:
    """Return whether the smallest and the largest entry prove that all are in their domain."""
    match recipe.domains[name]:
        case "probability" | "mask":
            return low >= 0 and high <= 1
        case "nonnegative" | "weight":
            return low >= 0 and high < float("inf")
        case "positive":
            return low > 0 and high < float("inf")
        case "nonzero":
            return low > float("-inf") and high < float("inf") and (low > 0 or high < 0)
        case "above_minus_one":
            return low > -1 and high < float("inf")
        case "negative":
            return low > float("-inf") and high < 0
        case "kept":
            return low >= 0 and high <= 1
        case "length":
            return low >= 0 and high <= longest(recipe)
        case "class" | "predicted":
            return low >= 0 and high < classes_of(recipe)
        case "class_set":
            return low >= -1 and high < classes_of(recipe)
        case "indicator":
            return low >= 0 and high <= 1 and not tensor.is_floating_point()
        case "sign":
            return low >= -1 and high <= 1 and tensor.dtype != torch.bool and float(tensor.abs().min()) == 1
        case "box":
            return math.isfinite(low) and math.isfinite(high) and not bool(_inverted(recipe, tensor).any())
        case _:
            return low > float("-inf") and high < float("inf")


def _bad_entries(recipe: Recipe, name: str, tensor: Tensor) -> Tensor:
    match recipe.domains[name]:
        case "probability":
            return ~((tensor >= 0) & (tensor <= 1))
        case "mask":
            return _unless_ignored(recipe, tensor, ~((tensor >= 0) & (tensor <= 1)))
        case "nonnegative" | "weight":
            return ~((tensor >= 0) & tensor.isfinite())
        case "positive":
            return ~((tensor > 0) & tensor.isfinite())
        case "nonzero":
            return (tensor == 0) | ~tensor.isfinite()
        case "above_minus_one":
            return ~((tensor > -1) & tensor.isfinite())
        case "negative":
            return ~((tensor < 0) & tensor.isfinite())
        case "kept":
            return (tensor != 0) & (tensor != 1)
        case "length":
            return (tensor < 0) | (tensor.long() > longest(recipe))
        case "class":
            # Compare as int64: the bounds could wrap around in a narrow dtype.
            wide = tensor.long()
            return _unless_ignored(recipe, wide, (wide < 0) | (wide >= classes_of(recipe)))
        case "predicted":
            wide = tensor.long()
            return (wide < 0) | (wide >= classes_of(recipe))
        case "class_set":
            wide = tensor.long()
            return (wide < -1) | (wide >= classes_of(recipe))
        case "indicator":
            return _unless_ignored(recipe, tensor, (tensor != 0) & (tensor != 1))
        case "sign":
            wide = tensor if tensor.is_floating_point() else tensor.long()
            return (wide != -1) & (wide != 1)
        case "box":
            inverted = _inverted(recipe, tensor)
            return ~tensor.isfinite() | torch.cat([torch.zeros_like(inverted), inverted], -1)
        case _:
            return ~tensor.isfinite()


def _inverted(recipe: Recipe, tensor: Tensor) -> Tensor:
    """Return whether width and height of each box are negative, (..., 2)."""
    return tensor[..., 2:] < (tensor[..., :2] if is_xyxy(recipe) else 0)


def _unless_ignored(recipe: Recipe, tensor: Tensor, bad: Tensor) -> Tensor:
    ignored = recipe.parameters.get("ignore_index")
    if ignored is None:
        return bad
    return bad & (tensor if tensor.is_floating_point() else tensor.long()).ne(ignored)
