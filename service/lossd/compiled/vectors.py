"""Losses of pairs and triplets of vectors, whose rows are independent: value, gradient and what metrics count.

Everything is float64, in blocks of rows that stay in a core's own cache. A request is doubtful if one of its rows is at
a bend, where rounding decides the gradient, or if a distance or a length is 0 or has left float64's range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lossd.compiled.forms import Form, doubt_what_left_range, words_of_all
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe
from lossd.metrics.cutoffs import slack
from lossd.metrics.distances import NOISE

__all__ = ["FORMS"]

Array = npt.NDArray[Any]

BLOCK = 1 << 14
"""Numbers of a vector's kind in a block."""

LEAST_SQUARE, MOST_SQUARE = 1e-280, 1e280
"""The sums of squares that have not left float64's range."""

TIE = {1: 1e-6, 2: 1e-13}
"""By the words of a number: how near a bend, in units of what is compared, rounding decides on which side a row is."""


class RowLosses(NamedTuple):
    """What is found of r rows.

    Attributes:
        value: (r,).
        squares: The squared length of the gradient by each vector, (V, r).
        doubtful: (r,) bool.
        measured: What metrics are means or counts of, (M, r).
    """

    value: Array
    squares: Array
    doubtful: Array
    measured: Array


class Rows(NamedTuple):
    """Rows as a loss takes them.

    Attributes:
        vectors: (r, D) float64 each.
        similar: (r,) bool, whether the vectors of a pair are similar; (0,) for triplets.
        numbers: The loss's numeric parameters by name: a number, or (r,).
        upstream: The factor of the gradient: a number, or (r,).
        gradients: Where the gradient by each vector goes, (r, D); None where it is not wanted.
        words: The float32 words of a number, as sent.
        parameters: The loss's other parameters.
    """

    vectors: Sequence[Array]
    similar: Array
    numbers: Mapping[str, Any]
    upstream: Any
    gradients: Sequence[Array | None]
    words: int
    parameters: Mapping[str, Any]


def _contrastive(rows: Rows) -> RowLosses:
    margin, factor = rows.numbers["margin"], rows.numbers["factor"]
    apart, squares, doubtful = _apart([rows.vectors], rows.numbers["eps"], rows.words)
    square, distances = squares[0], np.sqrt(squares)
    short = np.maximum(margin - distances[0], 0)
    value = factor * np.where(rows.similar, square, short * short)
    slope = 2 * factor * np.where(rows.similar, 1, -short / distances[0]) * rows.upstream
    for gradient, sign in zip(rows.gradients, (slope, -slope), strict=True):
        if gradient is not None:
            np.multiply(sign[:, None], apart[0], out=gradient)
    length = slope * slope * square
    return RowLosses(value, np.array((length, length)), doubtful, distances)


def _cosine_embedding(rows: Rows) -> RowLosses:
    """As :func:`lossd.losses.embedding.cosine_embedding`: near one line by the difference or the sum of the two."""
    margin = rows.numbers["margin"]
    squares = [_square(vector) for vector in rows.vectors]
    lengths = [np.sqrt(square)[:, None] for square in squares]
    first, second = (vector / length for vector, length in zip(rows.vectors, lengths, strict=True))
    cosine = np.add.reduce(first * second, 1)
    side = (cosine > 0.5).astype(float) - (cosine < -0.5)
    across = side[:, None] * first - second
    half = _square(across) / 2
    apart = np.where(side > 0, half, np.where(side < 0, 2 - half, 1 - cosine))
    above = 1 - apart - margin
    value = np.where(rows.similar, apart, np.maximum(above, 0))
    doubtful = _left_range(squares[0]) | _left_range(squares[1]) | (~rows.similar & (np.abs(above) < TIE[2]))
    slope = (np.where(rows.similar, 1.0, np.where(above > 0, -1.0, 0.0)) * rows.upstream)[:, None]
    found = []
    for unit, pull, length, gradient in (
        (first, across, lengths[0], rows.gradients[0]),
        (second, side[:, None] * second - first, lengths[1], rows.gradients[1]),
    ):
        turn = (pull - unit * np.add.reduce(unit * pull, 1)[:, None]) * (slope / length)
        if gradient is not None:
            gradient[...] = turn
        found.append(_square(turn))
    return RowLosses(value, np.array(found), doubtful, 1 - np.rint(cosine * NOISE)[None] / NOISE)


def _triplet(rows: Rows) -> RowLosses:
    anchor, positive, negative = rows.vectors
    squared, swap, tie = rows.parameters["squared"], rows.parameters["swap"], TIE[rows.words]
    margin, eps = rows.numbers["margin"], 0.0 if squared else rows.numbers["eps"]
    sides = [(anchor, positive), (anchor, negative), *([(positive, negative)] if swap else [])]
    (pull, push, *between), squares, doubtful = _apart(sides, eps, rows.words)
    near, far, *across = distances = squares if squared else np.sqrt(squares)
    nearer: Any = False
    if swap:
        nearer = across[0] < far
        doubtful |= np.abs(across[0] - far) <= tie * far
        push, far = np.where(nearer[:, None], between[0], push), np.minimum(far, across[0])
        distances = np.array((near, far))
    behind = near - far + margin
    value = np.maximum(behind, 0)
    doubtful |= (np.abs(behind) <= tie * (near + far + margin)) | (np.abs(near - far) <= TIE[2] * far)
    factor = (behind > 0) * rows.upstream
    slopes = factor * (np.full_like(distances, 2) if squared else 1 / distances)
    pull *= slopes[0, :, None]
    push *= slopes[1, :, None]
    # The negative is pushed away from the anchor, or from the positive if that is nearer.
    of_anchor, of_positive = pull - push, -pull
    if swap:
        of_anchor[nearer], of_positive[nearer] = pull[nearer], of_positive[nearer] - push[nearer]
    found = of_anchor, of_positive, push
    for gradient, slope in zip(rows.gradients, found, strict=True):
        if gradient is not None:
            gradient[...] = slope
    lengths = np.array([_square(slope) for slope in found])
    return RowLosses(value, lengths, doubtful, np.array((far > near, value <= 0, near, far)))


def _square(vectors: Array) -> Array:
    """Return the squared length of each vector, along the last axis."""
    square: Array = np.add.reduce(vectors * vectors, -1)
    return square


def _left_range(square: Array) -> Array:
    """Return which squared lengths are 0 or may have left the range of squares; NaN among them."""
    return ~((square > LEAST_SQUARE) & (square < MOST_SQUARE))


def _apart(pairs: Sequence[Sequence[Array]], eps: Any, words: int) -> tuple[Array, Array, Array]:
    """Return the differences of P pairs of vectors, (P, r, D), their squared lengths, (P, r), and the doubts, (r,)."""
    apart = np.empty((len(pairs), *pairs[0][0].shape))
    for difference, (first, second) in zip(apart, pairs, strict=True):
        np.subtract(first, second, out=difference)
    if isinstance(eps, float) and eps == 0:
        squares = _square(apart)
        return apart, squares, np.logical_or.reduce(_left_range(squares))
    same = ~apart.any(2)
    apart += np.reshape(np.float32(eps) if words == 1 else eps, (-1, 1))
    squares = _square(apart)
    return apart, squares, np.logical_or.reduce(_left_range(squares) | same)


class _Loss(NamedTuple):
    """A loss of rows.

    Attributes:
        task: The task that reads what is measured.
        names: The names of the vectors.
        no: The entry of ``similar`` for a pair that is not; None for triplets.
        evaluate: Evaluates rows.
        numbers: The names of the parameters that may differ, beside ``margin``.
    """

    task: str
    names: tuple[str, ...]
    no: int | None
    evaluate: Callable[[Rows], RowLosses]
    numbers: tuple[str, ...] = ()


PAIR = ("first", "second")
MEANS = ("right", "without_loss", "near", "far")
"""What the task of triplets has the means of."""

LOSSES = {
    "contrastive": _Loss("pairs", PAIR, 0, _contrastive, ("factor", "eps")),
    "cosine_embedding": _Loss("cosine_pairs", PAIR, -1, _cosine_embedding),
    "triplet": _Loss("triplets", ("anchor", "positive", "negative"), None, _triplet, ("eps",)),
}


def _form(recipe: Recipe) -> Form | None:
    loss = LOSSES[recipe.loss or ""]
    names = (*loss.names, "similar") if loss.no is not None else loss.names
    columns = {column.name: column for column in recipe.inputs}
    if columns.keys() != set(names) or recipe.axes or float(recipe.parameters.get("p", 2)) != 2:
        return None
    if (words := words_of_all(columns[name] for name in loss.names)) is None:
        return None
    measures, mean = bool(recipe.metrics) and recipe.task == loss.task, recipe.reduction == "mean"
    width = columns[loss.names[0]].trailing[0]

    requested, step = [loss.names.index(name) for name in recipe.gradients], max(1, BLOCK // width)

    def evaluate(work: Work) -> PassOutput:
        counts, firsts, total = np.array(work.rows), work.starts()[:-1], sum(work.rows)
        numbers = {name: _spread(work.numbers[name], counts) for name in ("margin", *loss.numbers)}
        upstream = _spread([1 / rows for rows in work.rows], counts) if mean else 1.0
        valid = similar = np.ones(0, bool)
        if loss.no is not None:
            sent = work.inputs["similar"]
            similar = sent == 1
            valid = similar | (sent == loss.no)
        vectors = [work.inputs[name] for name in loss.names]
        gradients = [work.answers.get(f"gradient.{name}") for name in loss.names]

        def evaluate_part(part: slice) -> RowLosses:
            return loss.evaluate(
                Rows(
                    [vector[part].astype(float) for vector in vectors],
                    similar[part],
                    {name: n if isinstance(n, float) else n[part] for name, n in numbers.items()},
                    upstream if isinstance(upstream, float) else upstream[part],
                    [None if gradient is None else gradient[part] for gradient in gradients],
                    words,
                    recipe.parameters,
                )
            )

        with np.errstate(all="ignore"):  # what is not finite is doubtful
            blocks = [evaluate_part(slice(first, first + step)) for first in range(0, total, step)]
            found = blocks[0] if len(blocks) == 1 else RowLosses(*map(_joined, zip(*blocks, strict=True)))
            sums = np.add.reduceat(found.value, firsts)
            lengths = np.sqrt(np.add.reduceat(found.squares, firsts, axis=1))[requested]
            columns = np.array([sums / counts if mean else sums, sums, counts, counts, *lengths])
        doubtful = found.doubtful if valid.all() else found.doubtful | ~valid
        doubts = np.logical_or.reduceat(doubtful, firsts) | ~np.isfinite(columns).all(0)
        for name, length in zip(recipe.gradients, lengths, strict=True):
            doubt_what_left_range(words, length, work.answers[f"gradient.{name}"], work.starts(), doubts)
        counted: dict[str, Any] = {}
        if measures and loss.no is not None:
            counted["cells"] = _cells(found.measured[0] < cut(numbers["margin"]), similar, firsts, counts)
        elif measures:
            sums = np.add.reduceat(found.measured, firsts, axis=1)
            counted = {name: (s, counts) for name, s in zip(MEANS, sums, strict=True)}
        return PassOutput(columns, doubts, counted)

    relative, threshold = slack("float64" if words == 2 else "float32"), recipe.metric_options.get("threshold")

    def cut(margin: Any) -> Any:
        """Return the distance below which pairs are decided to be similar, as the tasks of pairs do."""
        if loss.task == "cosine_pairs":
            return ((1 - margin) / 2 if threshold is None else threshold) - relative
        return (margin / 2 if threshold is None else threshold) * (1 - relative)

    return Form((), evaluate)


def _joined(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts, -1)


def _spread(numbers: Sequence[float], counts: Array) -> Any:
    """Return numbers of requests, B of them, as one number if all are equal, else for each row, (R,)."""
    if numbers.count(numbers[0]) == len(numbers):
        return float(numbers[0])
    return np.repeat(np.array(numbers, float), counts)


def _cells(predicted: Array, actual: Array, firsts: Array, counts: Array) -> Array:
    """Return true and false positives, false and true negatives of each request, (B, 1, 4) int64."""
    hits, positive, true = np.add.reduceat(
        np.array([predicted & actual, predicted, actual]), firsts, axis=1, dtype=np.int64
    )
    return np.stack([hits, positive - hits, true - hits, counts - positive - true + hits], 1)[:, None]


FORMS: Mapping[str, Callable[[Recipe], Form | None]] = dict.fromkeys(LOSSES, _form)
