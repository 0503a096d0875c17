"""Losses of embeddings that are each other's neighbours: value, gradient and what the default metrics compare.

Loss and metrics share the cosines, which are products of matrices; everything is float64. Requests of one shape are
computed together, as many as stay in a core's own cache. A request is doubtful if one of its vectors has no direction,
if it has no positive or no negative pair, or if rounding decides which triplet is the hardest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lossd.compiled.forms import INTEGERS, Form, doubt_what_left_range, words_of_all
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe
from lossd.metrics.distances import NOISE

__all__ = ["FORMS"]

Array = npt.NDArray[Any]

BLOCK = 1 << 16
"""Cosines that are held at a time, if those of one request are not more."""

LEAST_LENGTH, MOST_LENGTH = 1e-140, 1e140
"""The lengths whose squares have not left float64's range."""

MANY = 1 << 10
"""From so many embeddings on, threads that share one request are faster, the general way."""

TIE = 1e-12
"""How near two distances are, in units of the largest there is, if rounding decides which is larger."""


class Requests(NamedTuple):
    """Some requests of one shape.

    Attributes:
        vectors: (b, N, D) float64 each: the embeddings, or both views of them.
        label: (b, N) integers; (b, 0) for views.
        numbers: The loss's numeric parameters by name, (b, 1, 1) each.
        parameters: The loss's other parameters.
        metrics: The names of the metrics for which something is counted.
    """

    vectors: Sequence[Array]
    label: Array
    numbers: Mapping[str, Array]
    parameters: Mapping[str, Any]
    metrics: frozenset[str]


class NeighbourLosses(NamedTuple):
    """What is found of b requests.

    Attributes:
        value: (b, N), 0 where the mean does not count it.
        counts: Which values the mean counts, (b, N) bool.
        gradients: Of the sum of the values by each vector, (b, N, D).
        doubtful: (b,) bool.
        counted: What metrics read, by name: one number for each request or each embedding.
    """

    value: Array
    counts: Array
    gradients: Sequence[Array]
    doubtful: Array
    counted: Mapping[str, Array]


class _Directions:
    """Vectors at length 1.

    Args:
        vectors: (b, N, D) float64.

    Attributes:
        units: (b, N, D).
        doubtful: Whether a vector of a request has no direction, (b,) bool.
    """

    def __init__(self, vectors: Array) -> None:
        self.length = np.sqrt(np.add.reduce(vectors * vectors, -1, keepdims=True))
        self.units = vectors / self.length
        within = (self.length > LEAST_LENGTH) & (self.length < MOST_LENGTH)
        self.doubtful = ~np.logical_and.reduce(within, (1, 2))

    def gradient(self, slopes: Array) -> Array:
        """Return the gradient by the vectors, given that by the units."""
        turn: Array = (slopes - self.units * np.add.reduce(self.units * slopes, -1, keepdims=True)) / self.length
        return turn


# Two views


def _contrast_of_all(requests: Requests) -> NeighbourLosses:
    """As the symmetric :func:`lossd.losses.embedding.info_nce`."""
    first, second = (_Directions(vectors) for vectors in requests.vectors)
    both = np.concatenate([first.units, second.units], 1)
    count = both.shape[1] // 2
    cosine = both @ both.swapaxes(1, 2)
    within = cosine[:, :count, :count], cosine[:, count:, count:]
    counted = _count_views(requests.metrics, first.units, second.units, cosine[:, :count, count:], within)
    cosine /= requests.numbers["temperature"]
    _diagonal(cosine)[...] = -np.inf
    entropy = _entropies(cosine, (np.arange(2 * count) + count) % (2 * count), 2)
    pulls = (cosine + cosine.swapaxes(1, 2)) @ both
    pulls /= 2 * requests.numbers["temperature"]
    value = (entropy[:, :count] + entropy[:, count:]) / 2
    gradients = first.gradient(pulls[:, :count]), second.gradient(pulls[:, count:])
    return NeighbourLosses(value, np.ones(value.shape, bool), gradients, first.doubtful | second.doubtful, counted)


def _contrast_of_views(requests: Requests) -> NeighbourLosses:
    """As :func:`lossd.losses.embedding.clip`."""
    first, second = (_Directions(vectors) for vectors in requests.vectors)
    cosine = first.units @ second.units.swapaxes(1, 2)
    within = [view.units @ view.units.swapaxes(1, 2) for view in (first, second) if "uniformity" in requests.metrics]
    counted = _count_views(requests.metrics, first.units, second.units, cosine, within)
    cosine /= requests.numbers["temperature"]
    counterpart, slopes = np.arange(cosine.shape[1]), cosine.copy()
    value = (_entropies(slopes, counterpart, 2) + _entropies(cosine, counterpart, 1)) / 2
    slopes += cosine
    slopes /= 2 * requests.numbers["temperature"]
    gradients = first.gradient(slopes @ second.units), second.gradient(slopes.swapaxes(1, 2) @ first.units)
    return NeighbourLosses(value, np.ones(value.shape, bool), gradients, first.doubtful | second.doubtful, counted)


def _entropies(score: Array, counterpart: Array, axis: int) -> Array:
    """Return the cross-entropy of each embedding's counterpart, (b, T), and replace the scores by its slopes.

    Args:
        score: (b, T, T), -inf for what an embedding does not choose among.
        counterpart: The counterpart of each, (T,).
        axis: 2 if rows choose among columns, 1 if columns choose among rows.
    """
    count = score.shape[1]
    flat, place = score.reshape(len(score), -1), np.arange(count) * count + counterpart
    top = score.max(axis, keepdims=True)
    behind = top.squeeze(axis) - flat[:, place]
    score -= top
    np.exp(score, out=score)
    share = flat[:, place]
    flat[:, place] = 0  # the others of an almost certain choice would be rounded away beside it
    others = np.add.reduce(score, axis)
    total = others + share
    score /= np.expand_dims(total, axis)
    flat[:, place] = -others / total
    entropy: Array = behind + np.log1p(others + (share - 1))
    return entropy


def _count_views(
    metrics: frozenset[str], first: Array, second: Array, across: Array, within: Sequence[Array]
) -> dict[str, Array]:
    """Return what the metrics of two views read.

    Args:
        metrics: Their names.
        first: Units, (b, N, D), and ``second``.
        second: Those of the other view.
        across: Their cosines with each other, (b, N, N).
        within: The cosines of each view's units among themselves, (b, N, N) each.
    """
    counted, count = {}, first.shape[1]
    if metrics & {"first_to_second@1", "second_to_first@1"}:
        near, index = np.rint(across * NOISE), np.arange(count)
        counted["nearest_in_second"] = (near.argmax(2) == index).ravel()
        counted["nearest_in_first"] = (near.argmax(1) == index).ravel()
    if "alignment" in metrics:
        apart = first - second
        counted["distance"] = np.add.reduce(apart * apart, (1, 2))
    if "uniformity" in metrics:
        counted["uniformities"] = (_uniformity(within[0]) + _uniformity(within[1])) / 2
    return counted


def _uniformity(cosine: Array) -> Array:
    """Return the logarithm of the mean of exp(-2 d²) of all pairs, d² = 2 - 2 cos, (b,)."""
    count, near = cosine.shape[1], np.rint(cosine * NOISE)
    near *= 4 / NOISE
    near -= 4
    potential = np.add.reduce(np.exp(near, out=near), (1, 2))
    mean: Array = np.log((potential - count) / (count * (count - 1)))
    return mean


# Labels


def _contrast_of_labels(requests: Requests) -> NeighbourLosses:
    """As :func:`lossd.losses.embedding.supcon`."""
    (vectors,), label = requests.vectors, requests.label
    view = _Directions(vectors)
    positive, doubtful = _positives(label)
    score = view.units @ view.units.swapaxes(1, 2)
    counted = _count_labels(requests.metrics, score, label, positive)
    score /= requests.numbers["temperature"]
    _diagonal(score)[...] = -np.inf
    best, top = score.argmax(2)[..., None], score.max(2, keepdims=True)
    count = positive.sum(2)
    share = 1 / np.maximum(count, 1)
    score -= top
    behind = -np.add.reduce(score, 2, where=positive) * share
    np.exp(score, out=score)
    np.put_along_axis(score, best, 0, 2)
    others = np.add.reduce(score, 2)
    value = np.where(count > 0, behind + np.log1p(others), 0)
    score /= 1 + others[..., None]
    score -= positive * share[..., None]
    of_best = np.take_along_axis(positive, best, 2) * share[..., None]
    np.put_along_axis(score, best, (1 - of_best) - (others / (1 + others))[..., None], 2)
    score *= (count > 0)[..., None]
    pulls = (score + score.swapaxes(1, 2)) @ view.units
    pulls /= requests.numbers["temperature"]
    return NeighbourLosses(value, count > 0, (view.gradient(pulls),), doubtful | view.doubtful, counted)


def _hardest_triplets(requests: Requests) -> NeighbourLosses:
    """As :func:`lossd.losses.embedding.mined_triplet` of the hardest: found by matrix products, then measured."""
    (vectors,), label, squared = requests.vectors, requests.label, requests.parameters["squared"]
    positive, doubtful = _positives(label)
    centred = vectors - np.add.reduce(vectors, 1, keepdims=True) / vectors.shape[1]
    square = np.add.reduce(centred * centred, -1)
    table = centred @ centred.swapaxes(1, 2)
    table *= -2
    table += square[:, :, None]
    table += square[:, None]
    _diagonal(table)[...] = np.inf
    largest = square.max(1)
    doubtful |= ~((largest > LEAST_LENGTH**2) & (largest < MOST_LENGTH**2))
    near_enough = TIE * largest[:, None, None]
    doubtful |= (table <= near_enough).any((1, 2))
    furthest, pulls, ties = _largest(np.where(positive, table, -np.inf), near_enough)
    np.negative(table, out=table)
    table[positive] = -np.inf
    nearest, pushes, more_ties = _largest(table, near_enough)
    ties |= more_ties
    valid = pulls & pushes
    pulled, pushed = (np.take_along_axis(vectors, other, 1) for other in (furthest, nearest))
    pull, push = (np.add.reduce((vectors - other) ** 2, -1) for other in (pulled, pushed))
    slopes = (np.full_like(pull, 2), np.full_like(push, 2)) if squared else (pull**-0.5, push**-0.5)
    if not squared:
        pull, push = np.sqrt(pull), np.sqrt(push)
    margin = requests.numbers["margin"].squeeze(2)
    behind = pull - push + margin
    ties |= np.abs(behind) <= TIE * (pull + push + margin)
    active = valid & (behind > 0)
    table[...] = 0
    np.put_along_axis(table, furthest, (active * slopes[0])[..., None], 2)
    np.put_along_axis(table, nearest, (active * -slopes[1])[..., None], 2)
    table = table + table.swapaxes(1, 2)
    gradient = centred * np.add.reduce(table, 2)[..., None] - table @ centred
    del table  # as large as the cosines
    doubtful |= (ties & valid).any(1)
    counted: Mapping[str, Array] = {}
    if requests.metrics:
        view = _Directions(vectors)
        doubtful |= view.doubtful
        counted = _count_labels(requests.metrics, view.units @ view.units.swapaxes(1, 2), label, positive)
    counts = active if requests.parameters["active_only"] else valid
    return NeighbourLosses(np.where(active, behind, 0), counts, (gradient,), doubtful, counted)


def _largest(table: Array, near_enough: Array) -> tuple[Array, Array, Array]:
    """Return the column of each row's largest number, (b, N, 1); whether it is finite, and has a tie, (b, N) each."""
    column, largest = table.argmax(2)[..., None], table.max(2, keepdims=True)
    return column, np.isfinite(largest).squeeze(2), (table >= largest - near_enough).sum(2) > 1


def _positives(label: Array) -> tuple[Array, Array]:
    """Return which others have the label of each, (b, N, N), and which requests have no positive or no negative."""
    positive = label[:, :, None] == label[:, None]
    doubtful = positive.all((1, 2))
    _diagonal(positive)[...] = False
    return positive, doubtful | ~positive.any((1, 2))


def _count_labels(metrics: frozenset[str], cosine: Array, label: Array, positive: Array) -> dict[str, Array]:
    """Return what the metrics of labelled embeddings read."""
    if not metrics:
        return {}
    near = np.rint(cosine * NOISE)
    _diagonal(near)[...] = -np.inf
    nearest = np.take_along_axis(label, near.argmax(2), 1) == label
    return {"nearest": nearest.ravel(), "has_positive": positive.any(2).ravel()}


def _diagonal(table: Array) -> Array:
    """Return the diagonals of (b, N, N), contiguous, to be written: (b, N)."""
    diagonal: Array = table.reshape(len(table), -1)[:, :: table.shape[1] + 1]
    return diagonal


class _Loss(NamedTuple):
    """A loss of neighbours.

    Attributes:
        task: The task that reads what is counted.
        names: The names of the vectors.
        evaluate: Evaluates requests.
        number: The name of the parameter that may differ.
        fixed: The other parameters that must have these values.
    """

    task: str
    names: tuple[str, ...]
    evaluate: Callable[[Requests], NeighbourLosses]
    number: str = "temperature"
    fixed: Mapping[str, Any] = {}


VIEWS, LABELLED = "paired_views", "labelled_embeddings"
COUNTED = {
    VIEWS: frozenset({"first_to_second@1", "second_to_first@1", "alignment", "uniformity"}),
    LABELLED: frozenset({"recall@1", "precision@1"}),
}
"""The metrics for which something is counted, by their task."""

LOSSES = {
    **dict.fromkeys(
        ("info_nce", "nt_xent"), _Loss(VIEWS, ("first", "second"), _contrast_of_all, fixed={"variant": "symmetric"})
    ),
    "clip": _Loss(VIEWS, ("first", "second"), _contrast_of_views),
    "supcon": _Loss(LABELLED, ("embedding",), _contrast_of_labels),
    "mined_triplet": _Loss(LABELLED, ("embedding",), _hardest_triplets, "margin", {"mining": "hard"}),
}


def _form(recipe: Recipe) -> Form | None:
    loss = LOSSES[recipe.loss or ""]
    names = loss.names if loss.task == VIEWS else (*loss.names, "label")
    columns = {column.name: column for column in recipe.inputs}
    if columns.keys() != set(names) or recipe.axes:
        return None
    words, rows = words_of_all(columns[name] for name in loss.names), columns[loss.names[0]].trailing[0]
    if words is None:
        return None
    if loss.task == LABELLED and columns["label"].dtype not in INTEGERS:
        return None
    if rows == 1 or any(recipe.parameters[name] != value for name, value in loss.fixed.items()):
        return None
    metrics = COUNTED[loss.task].intersection(recipe.metrics) if recipe.task == loss.task else frozenset[str]()
    step, mean = max(1, BLOCK // (rows * len(loss.names)) ** 2), recipe.reduction == "mean"

    def evaluate(work: Work) -> PassOutput | None:
        count, numbers = len(work.rows), work.number(loss.number)
        if work.threads is not None and rows * len(loss.names) >= MANY:
            return None
        columns, doubtful = np.empty((4 + len(recipe.gradients), count)), np.zeros(count, bool)
        label = work.inputs["label"] if loss.task == LABELLED else np.empty((count, 0))

        def evaluate_part(part: slice) -> Mapping[str, Array]:
            vectors = [work.inputs[name][part].astype(float) for name in loss.names]
            varying = {loss.number: numbers[part, None, None]}
            with np.errstate(all="ignore"):  # what is not finite is doubtful
                found = loss.evaluate(Requests(vectors, label[part], varying, recipe.parameters, metrics))
                weight, total = found.counts.sum(1), np.add.reduce(found.value, 1)
                columns[:4, part] = total / weight if mean else total, total, weight, weight
                doubtful[part] = found.doubtful | (weight == 0)
                for place, name in enumerate(recipe.gradients, 4):
                    gradient = found.gradients[loss.names.index(name)]
                    if mean:
                        gradient = gradient / weight[:, None, None]
                    columns[place, part] = np.sqrt(np.add.reduce(gradient * gradient, (1, 2)))
                    work.answers[f"gradient.{name}"][part] = gradient
            return found.counted

        counted = list(work.in_parallel(evaluate_part, [slice(first, first + step) for first in range(0, count, step)]))
        doubtful |= ~np.isfinite(columns).all(0)
        starts = np.arange(count + 1)
        for place, name in enumerate(recipe.gradients, 4):
            doubt_what_left_range(words, columns[place], work.answers[f"gradient.{name}"], starts, doubtful)
        joined: dict[str, Any] = {name: np.concatenate([each[name] for each in counted]) for name in counted[0]}
        if "distance" in joined:
            joined["distance"] = joined["distance"], np.full(count, rows)
        return PassOutput(columns, doubtful, joined)

    return Form((), evaluate)


FORMS: Mapping[str, Callable[[Recipe], Form | None]] = dict.fromkeys(LOSSES, _form)
