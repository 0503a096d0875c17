"""Metrics of the order of scores, over all thresholds.

Each class's scores are sorted once. The counts at each distinct score, taken as a threshold, are the steps of areas,
curves and the best threshold. Equal scores are one step. A NaN score has no rank: areas are then NaN, and there is no
curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lossd.exact.steps import (
    PartialArea,
    Steps,
    area_under_roc,
    best_step,
    pr_points,
    precision_of_positives,
    roc_points,
)
from lossd.lazy_torch import Tensor, torch
from lossd.metrics.averages import average
from lossd.metrics.contributions import Scores
from lossd.metrics.counts import ADVERSARIAL, BINARY, CLASSES, LABELS, ONE_CLASS
from lossd.metrics.registry import Array, Floats, metric, spell
from lossd_client.errors import InvalidRequest

__all__ = ["Ranked", "Ranking", "Steps", "bounded", "scores_of", "steps_of"]

# Sorting takes some 60 bytes for each score.
MOST_SCORES = 1 << 25


@dataclass(frozen=True, slots=True)
class Ranking:
    """The scores and the truth of n entries.

    Attributes:
        scores: (n,); higher is more likely.
        positive: (n,) bool.
        weight: The weight of each entry, (n,) float64, > 0; None for 1.
        kept: Which of the (r, k, I) entries these are, bool; None for all.
        shape: (r, k, I).
    """

    scores: Tensor
    positive: Tensor
    weight: Tensor | None
    kept: Tensor | None
    shape: torch.Size

    @property
    def row(self) -> Tensor:
        """The row of each entry, (n,) int64."""
        rows = torch.arange(self.shape[0], device=self.scores.device).reshape(-1, 1, 1).expand(self.shape)
        return rows.reshape(-1) if self.kept is None else rows[self.kept]

    @classmethod
    def of(cls, scores: Tensor, positive: Tensor, ignored: Tensor | None, weight: Tensor | None) -> Ranking:
        """Return the ranking of the entries that count.

        Args:
            scores: Scores, (r, k, I).
            positive: Which entries are positive, (r, k, I) bool.
            ignored: Which entries do not count, (r, k, I) bool, or None.
            weight: The weight of each row, (r,) float64, or None.
        """
        bounded(scores.numel())
        spread = None if weight is None else weight.reshape(-1, 1, 1).expand(scores.shape)
        if ignored is None:
            weights = None if spread is None else spread.reshape(-1)
            return cls(scores.reshape(-1), positive.reshape(-1), weights, None, scores.shape)
        kept = ~ignored
        return cls(scores[kept], positive[kept], None if spread is None else spread[kept], kept, scores.shape)


def bounded(scores: int) -> None:
    """Check that there are not too many scores to sort.

    Raises:
        InvalidRequest: There are too many.
    """
    if scores > MOST_SCORES:
        raise InvalidRequest(
            f"metrics of the order of scores are computed of at most {MOST_SCORES} scores at once, found {scores}; "
            "send a sample of them"
        )


class Ranked(Protocol):
    """What ranking metrics need of a task."""

    count: int
    averaged: bool
    zero_division: float | None
    columns: int
    view: Any

    def ranking_of(self, rows: slice, column: int | None) -> Ranking:
        """Return the ranking of some rows for one class or label; of all together for None."""
        ...

    def steps(self, request: int, column: int | None) -> Steps:
        """Return the steps of that ranking."""
        ...

    def threshold_at(self, scores: Floats, step: int) -> Any:
        """Return the ``threshold`` that decides for the first scores up to ``step``; the scores are falling."""
        ...


def steps(ranking: Ranking) -> Steps:
    """Return the steps of a ranking."""
    order = _falling(ranking.scores)
    scores, positive = ranking.scores[order], ranking.positive[order]
    if ranking.weight is None:
        tp = positive.cumsum(0)
        fp = torch.arange(1, len(tp) + 1, device=tp.device) - tp
    else:
        weight = ranking.weight[order]
        tp = (weight * positive).cumsum(0)
        fp = (weight * ~positive).cumsum(0)
    last = torch.ones_like(positive)
    last[:-1] = scores[1:] != scores[:-1]
    return Steps(*(t[last].numpy(force=True) for t in (scores.double() + 0.0, tp, fp)))


def steps_of(task: Any, request: int, column: int | None) -> Steps:
    """Return the steps of the ranking of one request by one column of a task's scores; of all together for None."""
    if task.rankings is not None:
        found: Steps = task.rankings.steps(request, column)
        return found
    return steps(task.ranking_of(task.entries.rows_of(request), column))


def scores_of(task: Any) -> Scores:
    """Return the scores of each class or label of a batch, with the weights as they were sent."""
    weight, index = task.view.sample_weight, task.view.placed.index
    sent = None if weight is None else weight.numpy(force=True)

    def columns() -> Iterator[tuple[Floats, Array, Floats | None, Array]]:
        for column in range(task.columns):
            ranking = task.ranking_of(slice(None), column)
            row = ranking.row.numpy(force=True)
            of_row = None if sent is None else sent[row]
            yield ranking.scores.double().numpy(force=True), ranking.positive.numpy(force=True), of_row, index[row]

    return Scores(columns, task.columns, 2, weight is not None)


def _falling(scores: Tensor) -> Tensor:
    """Return the order from high to low; NaN comes first."""
    if scores.is_cuda:
        return scores.argsort(descending=True)
    # NumPy's vectorised sort is five times as fast as torch's on a CPU.
    return torch.from_numpy(np.argsort(scores.numpy())[::-1].copy())


@metric(
    *ONE_CLASS, *LABELS, *CLASSES,
    options=("max_fpr",), sorts=True, reads=("rankings",), better="higher", interval="unit", cases="rarer",
)  # fmt: skip
def auroc(task: Ranked) -> Sequence[Any]:
    """Area under the ROC curve: the probability that a positive entry scores above a negative one; ties count half.

    Undefined if all entries are positive, or none. Several classes: each against the rest, by its log-odds, which
    rise with its probability; averages are over those defined. With ``max_fpr`` the area up to that false positive
    rate, standardised so that 1 is perfect and 1/2 chance. Equals sklearn.metrics.roc_auc_score
    (``multi_class="ovr"``).

    References:
        D. K. McClish, Analyzing a Portion of the ROC Curve, 1989, doi:10.1177/0272989X8900900307.
    """
    most = task.view.options.get("max_fpr")
    return _areas(task, "auroc", area_under_roc if most is None else PartialArea(most))


@metric(
    *ONE_CLASS, *LABELS, *CLASSES, sorts=True, reads=("rankings",), better="higher", interval="unit", cases="actual"
)
def average_precision(task: Ranked) -> Sequence[Any]:
    """The mean of the precision at each positive entry: the area under the precision-recall curve, in steps.

    Undefined where no entry is positive. Several classes: each against the rest, by its log-odds, which rise with its
    probability; averages are over those defined. Equals sklearn.metrics.average_precision_score.
    """
    return _areas(task, "average_precision", precision_of_positives)


def _areas(task: Any, name: str, area: Callable[[Steps], tuple[float, bool]]) -> list[Any]:
    # Each request's classes, then all of them pooled; request by request, because they share the sorted scores.
    columns = [*range(task.columns), *([None] if task.averaged else [])]
    if task.rankings is None:
        pairs = np.array([[area(task.steps(b, k)) for k in columns] for b in range(task.count)])
    else:
        pairs = np.stack([np.stack(task.rankings.areas(area, k), -1) for k in columns], 1)
    values: Floats = pairs[..., 0]
    defined: Array = pairs[..., 1] > 0
    if not task.averaged:
        answer: list[Any] = task.numbers(name, values[:, 0], ~defined[:, 0], classes=(1,))
        return answer
    values, defined, micro, micro_defined = values[None, :, :-1], defined[None, :, :-1], values[:, -1], defined[:, -1]
    averaged = average(values, defined, defined, task.actual, micro[None], micro_defined[None], task.zero_division)
    return averaged.answers(task, (name,))[name]


@metric(*BINARY, *ADVERSARIAL, *LABELS, options=("points",), sorts=True, reads=("rankings",), interval=None)
def roc_curve(task: Ranked) -> Sequence[Any]:
    """The ROC curve, {"fpr", "tpr", "thresholds"}: false and true positive rate, by falling threshold.

    The first point, (0, 0), has the threshold Infinity; points on a straight line are left out, and beyond ``points``
    the rest is thinned evenly. The other thresholds are named as ``best_threshold`` does. Null where all entries are
    positive or none is. Of several labels, a list of curves. Equals sklearn.metrics.roc_curve.
    """

    def curve(s: Steps) -> dict[str, Any] | None:
        if (found := roc_points(s, task.view.options["points"])) is None:
            return None
        fpr, tpr, kept = found
        thresholds = ["Infinity", *(task.threshold_at(s.around(step), 0) for step in kept.tolist())]
        return {"fpr": spell(fpr), "tpr": spell(tpr), "thresholds": thresholds}

    return _curves(task, "roc_curve", curve)


@metric(*BINARY, *ADVERSARIAL, *LABELS, options=("points",), sorts=True, reads=("rankings",), interval=None)
def pr_curve(task: Ranked) -> Sequence[Any]:
    """The precision-recall curve, {"precision", "recall", "thresholds"}, by rising threshold.

    Ends with the point (1, 0), which has no threshold; the others are named as ``best_threshold`` does. Beyond
    ``points`` it is thinned evenly. Null where no entry is positive. Of several labels, a list of curves. Equals
    sklearn.metrics.precision_recall_curve.
    """

    def curve(s: Steps) -> dict[str, Any] | None:
        if (found := pr_points(s, task.view.options["points"])) is None:
            return None
        precision, recall, kept = found
        thresholds = [task.threshold_at(s.around(step), 0) for step in kept.tolist()]
        return {"precision": spell(precision), "recall": spell(recall), "thresholds": thresholds}

    return _curves(task, "pr_curve", curve)


@metric(*ONE_CLASS, *LABELS, sorts=True, reads=("rankings",), interval=None)
def best_threshold(task: Ranked) -> Sequence[Any]:
    """The threshold, among the scores, with the highest F1; of several, the one with the fewest positives.

    Sent back as the option ``threshold`` it gives that F1. It is a probability, or {"score": s}, the score itself,
    where float64 does not tell its probability from that of the next lower score. Of distances, half-way to the next.
    Null where no entry is positive. Of several labels {"micro", "per_class"}: one threshold for all, and one for each.
    """

    def best(s: Steps) -> Any:
        step = best_step(s)
        return None if step is None else task.threshold_at(s.around(step), 0)

    per_class = _curves(task, "best_threshold", best)
    if not task.averaged:
        return per_class
    pooled = [best(task.steps(b, None)) for b in range(task.count)]
    return [{"micro": micro, "per_class": row} for micro, row in zip(pooled, per_class, strict=True)]


def _curves(task: Any, name: str, curve: Callable[[Steps], Any]) -> list[Any]:
    """Return one answer per request, or a list of one per label; each None is recorded."""
    answers = []
    for b in range(task.count):
        of_request = [curve(task.steps(b, k)) for k in range(task.columns)]
        if missing := [k for k, answer in enumerate(of_request) if answer is None]:
            task.undefined[b][name] = missing if task.averaged else [1]
        answers.append(of_request if task.averaged else of_request[0])
    return answers
