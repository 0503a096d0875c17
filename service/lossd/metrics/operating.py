"""What the best of all thresholds reaches, and where on the curve a demand is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lossd.exact.steps import Steps, equal_error_rate, farthest_apart, found_at_top, highest_within
from lossd.metrics.averages import average
from lossd.metrics.counts import LABELS, ONE_CLASS
from lossd.metrics.ranking import Ranked
from lossd.metrics.registry import Floats, metric

__all__: list[str] = []


@metric(*ONE_CLASS, *LABELS, sorts=True, reads=("rankings",), better="higher", interval=None)
def ks(task: Ranked) -> Sequence[Any]:
    """The largest distance of recall and fpr over all thresholds, the Kolmogorov-Smirnov statistic.

    Undefined if all entries are positive, or none. The highest ``informedness`` of any threshold is the same where
    scores are no worse than chance. Equals scipy.stats.ks_2samp of the scores of positives and negatives.
    """
    return _numbers(task, "ks", farthest_apart)


@metric(*ONE_CLASS, *LABELS, sorts=True, reads=("rankings",), better="lower", interval=None)
def eer(task: Ranked) -> Sequence[Any]:
    """Equal error rate: fpr where it equals fnr, on the ROC curve, linear between its points.

    Undefined if all entries are positive, or none.
    """
    return _numbers(task, "eer", equal_error_rate)


@metric(*ONE_CLASS, *LABELS, name="gain@top", options=("top",), sorts=True, reads=("rankings",), better="higher",
        interval=None)  # fmt: skip
def gain_at_top(task: Ranked) -> Sequence[Any]:
    """The fraction of all positives that are in the fraction ``top`` of the entries with the highest scores.

    Of equal scores of which only some are among them, the same part is positive as of all. Undefined where no entry is
    positive.
    """
    return _numbers(task, "gain@top", lambda s: found_at_top(s, task.view.options["top"]))


@metric(*ONE_CLASS, *LABELS, name="lift@top", options=("top",), sorts=True, reads=("rankings",), better="higher",
        interval=None)  # fmt: skip
def lift_at_top(task: Ranked) -> Sequence[Any]:
    """The positive fraction among the fraction ``top`` with the highest scores, over that of all entries.

    It is gain@top over ``top``; 1 is chance. Undefined where no entry is positive.
    """
    top = task.view.options["top"]

    def lift(s: Steps) -> float | None:
        found = found_at_top(s, top)
        return None if found is None else found / top

    return _numbers(task, "lift@top", lift)


@metric(*ONE_CLASS, *LABELS, options=("min_precision",), sorts=True, reads=("rankings",), interval=None)
def recall_at_precision(task: Ranked) -> Sequence[Any]:
    """The highest recall of a threshold whose precision is at least ``min_precision``, {"recall", "threshold"}.

    Thresholds are the scores, named as ``best_threshold`` does. Null if none reaches that precision or no entry is
    positive. Of several labels {"micro", "per_class"}.
    """
    return _best(task, "recall_at_precision", "recall", _recall_precision, "min_precision")


@metric(*ONE_CLASS, *LABELS, options=("min_recall",), sorts=True, reads=("rankings",), interval=None)
def precision_at_recall(task: Ranked) -> Sequence[Any]:
    """The highest precision of a threshold whose recall is at least ``min_recall``, {"precision", "threshold"}.

    Thresholds are the scores, named as ``best_threshold`` does. Null if no entry is positive. Of several labels
    {"micro", "per_class"}.
    """
    return _best(
        task, "precision_at_recall", "precision", lambda s: _recall_precision(s)[::-1], "min_recall"
    )  # fmt: skip


@metric(*ONE_CLASS, *LABELS, options=("min_specificity",), sorts=True, reads=("rankings",), interval=None)
def sensitivity_at_specificity(task: Ranked) -> Sequence[Any]:
    """The highest recall where specificity is at least ``min_specificity``, {"sensitivity", "threshold"}.

    Thresholds are the scores, named as ``best_threshold`` does. Null if none reaches that specificity, and where all
    entries are positive or none is. Of several labels {"micro", "per_class"}.
    """
    return _best(task, "sensitivity_at_specificity", "sensitivity", _sensitivity_specificity, "min_specificity")


@metric(*ONE_CLASS, *LABELS, options=("min_sensitivity",), sorts=True, reads=("rankings",), interval=None)
def specificity_at_sensitivity(task: Ranked) -> Sequence[Any]:
    """The highest specificity where recall is at least ``min_sensitivity``, {"specificity", "threshold"}.

    Thresholds are the scores, named as ``best_threshold`` does. Null where all entries are positive or none is. Of
    several labels {"micro", "per_class"}.
    """
    return _best(
        task, "specificity_at_sensitivity", "specificity", lambda s: _sensitivity_specificity(s)[::-1],
        "min_sensitivity",
    )  # fmt: skip


def _recall_precision(s: Steps) -> tuple[Floats, Floats]:
    if not s.positives > 0:
        return np.zeros(0), np.zeros(0)
    return np.asarray(s.tp / s.positives, float), np.asarray(s.tp / (s.tp + s.fp), float)


def _sensitivity_specificity(s: Steps) -> tuple[Floats, Floats]:
    if not (s.positives > 0 and s.negatives > 0):
        return np.zeros(0), np.zeros(0)
    return np.asarray(s.tp / s.positives, float), np.asarray((s.negatives - s.fp) / s.negatives, float)


def _best(task: Any, name: str, field: str, rates: Callable[[Steps], Any], option: str) -> list[Any]:
    """Return the highest of a rate where another reaches what an option says, with the threshold."""
    least = task.view.options[option]

    def best(s: Steps) -> dict[str, Any] | None:
        found = None if s.unranked else highest_within(s, rates, least)
        if found is None:
            return None
        value, step = found
        return {field: value, "threshold": task.threshold_at(s.around(step), 0)}

    answers = []
    for request in range(task.count):
        of_each = [best(task.steps(request, column)) for column in range(task.columns)]
        if missing := [column for column, answer in enumerate(of_each) if answer is None]:
            task.undefined[request][name] = missing if task.averaged else [1]
        pooled = best(task.steps(request, None)) if task.averaged else None
        answers.append({"micro": pooled, "per_class": of_each} if task.averaged else of_each[0])
    return answers


def _numbers(task: Any, name: str, function: Callable[[Steps], float | None]) -> list[Any]:
    """Return a function of each request's steps, of several labels with their averages over those defined."""
    columns = [*range(task.columns), *([None] if task.averaged else [])]
    found = [[function(task.steps(request, column)) for column in columns] for request in range(task.count)]
    defined = np.array([[value is not None for value in row] for row in found])
    values = np.array([[0.0 if value is None else value for value in row] for row in found])
    if not task.averaged:
        answer: list[Any] = task.numbers(name, values[:, 0], ~defined[:, 0], classes=(1,))
        return answer
    each, known = values[None, :, :-1], defined[None, :, :-1]
    micro, micro_known = values[None, :, -1], defined[None, :, -1]
    averaged = average(each, known, known, task.actual, micro, micro_known, task.zero_division)
    return averaged.answers(task, (name,))[name]
