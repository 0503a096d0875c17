"""The words of the error about an entry that is not in its domain: its place, the bounds, the remedy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lossd.job import Recipe
from lossd.losses import REGISTRY
from lossd.losses.registry import TARGETS
from lossd_client.wire.quoting import digits, quoted

__all__ = ["BadEntry", "classes_of", "explain", "explain_beyond", "is_xyxy", "longest"]

ROUNDING = 1e-3
"""A number this close to [0, 1] counts as a probability that half precision rounded."""

BRIGHT = 255
"""White in a picture of bytes: what masks hold that were read from one."""


class BadEntry(NamedTuple):
    """The first bad entry of a request.

    Attributes:
        tensor: The tensor that has the entry.
        where: The entry's index in the batch's tensor.
        place: The entry's index in the request's tensor.
        name: The input's name.
    """

    tensor: Tensor
    where: tuple[int, ...]
    place: tuple[int, ...]
    name: str

    def __str__(self) -> str:
        return f"{self.name}[{', '.join(map(str, self.place))}]" if self.place else self.name


def explain(recipe: Recipe, at: BadEntry) -> str:
    """Return what is wrong with an entry that is not in its domain, and what to do about it."""
    name, entry, value = at.name, at.tensor[at.where].item(), _spelled(at.tensor[at.where])
    match recipe.domains[name]:
        case "probability":
            remedy = _classes_remedy(recipe, name, at.tensor) or _into_range(recipe, name, entry)
            return f"probabilities expected in [0, 1], found {value} at {at}{remedy}"
        case "mask":
            remedy = _signed(name, entry) + (_bright(name, entry) or _ignoring(recipe, name, entry))
            return f"values in [0, 1] expected{_or_ignored(recipe)}, found {value} at {at}{remedy}"
        case "nonnegative" | "positive" | "negative" | "above_minus_one":
            bounds = {"nonnegative": ">= 0", "positive": "> 0", "negative": "< 0", "above_minus_one": "> -1"}
            bound = bounds[recipe.domains[name]]
            return f"finite values {bound} expected, found {value} at {at}{_leaving_out(recipe, name, entry)}"
        case "nonzero" if entry == 0:
            return (
                f"values other than 0 expected, found 0 at {at}; set eps to the least size of a target, or send a mask"
            )
        case "weight":
            return f"finite values >= 0 expected, found {value} at {at}; a weight of 0 leaves the entry out"
        case "kept":
            return f"1 (counts) or 0 (does not count) expected, found {value} at {at}; send {name} != 0"
        case "length":
            return f"lengths from 0 to {longest(recipe)} expected, that of axis 1, found {value} at {at}"
        case "class":
            last = classes_of(recipe) - 1
            remedy = "; the first class is 0" if entry == last + 1 else _ignoring(recipe, name, entry)
            if entry == BRIGHT and "ignore_index" in recipe.parameters:
                remedy = f"; set ignore_index to 255 if it marks what does not count, or send {name} // 255 for a mask"
            source = "metrics.classes says" if recipe.domains.get("prediction") == "predicted" else "prediction has"
            return (
                f"class {value} at {at} is out of range: classes 0 to {last} expected, as many as {source}"
                f"{_or_ignored(recipe)}{remedy}"
            )
        case "predicted":
            return (
                f"class {value} at {at} is out of range: classes 0 to {classes_of(recipe) - 1} expected, as many as "
                "metrics.classes says; the first class is 0"
            )
        case "class_set":
            return f"class {value} at {at} is out of range: classes 0 to {classes_of(recipe) - 1} expected, then -1"
        case "indicator":
            remedy = _signed(name, entry) + (_bright(name, entry) or _ignoring(recipe, name, entry))
            return f"1 (yes) or 0 (no) expected{_or_ignored(recipe)}, found {value} at {at}{remedy}"
        case "sign":
            remedy = f"; send 2 * {name} - 1 for labels of 0 and 1" if entry == 0 else ""
            return f"1 (yes) or -1 (no) expected, found {value} at {at}{remedy}"
        case "box" if math.isfinite(entry):
            corner = at.where[-1] - 2
            box = f"box {name}[{', '.join(map(str, at.place[:-1]))}]"
            if not is_xyxy(recipe):
                size = f"{box} has the negative {('width', 'height')[corner]} {value}"
                return f"{size}; set format to xyxy for boxes given by two corners"
            axis = "xy"[corner]
            opposite = _spelled(at.tensor[(*at.where[:-1], corner)])
            return (
                f"{box} is inverted: {axis}2 = {value} is less than {axis}1 = {opposite}; x1 <= x2 and y1 <= y2 "
                "expected; set format for boxes given by their size"
            )
        case _:
            return f"finite values expected, found {value} at {at}{_leaving_out(recipe, name, entry)}"


def _spelled(entry: Tensor) -> str:
    """Return an entry with the fewest digits that distinguish it in its dtype."""
    if not entry.is_floating_point():
        return quoted(entry.item())
    return digits(entry.item(), lambda number: torch.tensor(number, dtype=entry.dtype).item())


def _or_ignored(recipe: Recipe) -> str:
    ignored = recipe.parameters.get("ignore_index")
    return "" if ignored is None else f", or {ignored} (ignore_index) for targets that do not count"


def _leaving_out(recipe: Recipe, name: str, entry: float) -> str:
    """Return the remedy for an entry that may have no meaning."""
    if recipe.loss is None:
        return "; a sample_weight of 0 leaves a sample out"
    if not REGISTRY[recipe.loss].masked:
        return ""
    if math.isnan(entry) and name.partition(".")[0] in TARGETS:
        return '; set nan_targets to "ignore" to leave out targets that are NaN, or send a mask'
    return "; a mask of 0 leaves an entry out"


def _bright(name: str, entry: float) -> str:
    """Return the remedy for a mask that was read from a picture."""
    return f"; send {name} / 255 for a mask of 0 and 255" if entry == BRIGHT else ""


def _signed(name: str, entry: float) -> str:
    """Return the remedy for a label of -1."""
    return f"; send ({name} + 1) / 2 for labels of -1 and 1" if entry == -1 else ""


def _ignoring(recipe: Recipe, name: str, entry: float) -> str:
    """Return the remedy for missing targets, if a loss could ignore them."""
    if recipe.loss is None or recipe.parameters.get("ignore_index", 0) is not None:
        return ""
    if math.isnan(entry):  # no ignore_index equals NaN
        return _leaving_out(recipe, name, entry)
    return "; set ignore_index to the value of targets that do not count"


def _classes_remedy(recipe: Recipe, name: str, tensor: Tensor) -> str:
    """Return the remedy for class indices in the shape of class scores, which count as probabilities."""
    if name != "target" or tensor.is_floating_point():
        return ""
    metrics = "" if recipe.loss is None else "name a task in place of the loss and "
    return (
        "; class indices have the shape of prediction without its second axis, along which are the scores of classes; "
        f"for predicted classes, {metrics}set metrics.classes to their number"
    )


def _into_range(recipe: Recipe, name: str, entry: float) -> str:
    """Return the remedy for a number that is no probability."""
    if -ROUNDING < entry < 1 + ROUNDING:
        return "; clip to [0, 1] what rounding took out of it"
    if name != "prediction" or recipe.loss is None:
        return ""
    if f"{recipe.loss}_with_logits" in REGISTRY:
        return f"; use {recipe.loss}_with_logits for logits"
    return "; set from_logits to true for logits" if recipe.parameters.get("from_logits") is False else ""


def explain_beyond(recipe: Recipe, entry: BadEntry) -> str:
    """Return what is wrong with an integer that cannot be computed with."""
    found = entry.tensor[entry.where].item()
    if found < 0 and any(c.name == entry.name and c.dtype == "uint64" for c in recipe.inputs):
        return f"integers below 2**63 expected, found {found + 2**64} at {entry}"
    return f"{found} at {entry} has more digits than float64, which losses are computed in; subtract an offset first"


def is_xyxy(recipe: Recipe) -> bool:
    """Return whether boxes are given by two corners."""
    return recipe.parameters.get("format") in (None, "xyxy")


def longest(recipe: Recipe) -> int:
    """Return the number of entries along the axis whose entries ``lengths`` count."""
    return recipe.entries[0 if recipe.kind == "rows" else 1]


def classes_of(recipe: Recipe) -> int:
    """Return the number of classes."""
    assert recipe.classes is not None
    return recipe.classes
