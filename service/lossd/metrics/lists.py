"""Lists with an entry for each class or label: when answers hold them, and how long a text that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lossd.metrics.registry import TASKS

__all__ = ["LISTED_CLASSES", "MAX_TEXT_BYTES", "are_listed", "class_count", "listed_by_default", "text_bytes"]

LISTED_CLASSES = 1 << 14
"""Up to so many classes or labels they are listed by default."""

MAX_TEXT_BYTES = 16 << 20
"""The longest text of metrics."""

# What is nothing but such a list; where averages are answered, a list is one part of four.
LISTS = frozenset(("tp", "fp", "fn", "tn", "support", "confusion_matrix"))
CURVES = frozenset(("roc_curve", "pr_curve"))
# Of several classes or labels, plain numbers all the same.
PLAIN = frozenset(("accuracy", "top_k_accuracy", "brier", "log_loss", "ece", "reliability"))
PLAIN_OF_CLASSES = frozenset(("balanced_accuracy", "mcc", "cohen_kappa"))
MATRIX_CLASSES = 256

# The most bytes of a number and the comma after it; of a class among those that a metric is undefined for; of what
# an answer says besides.
NUMBER, INDEX, REST = 24, 9, 1024


def class_count(of: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many classes or labels a task counts by: the length of the prediction's axis 1, or 1."""
    shape = shapes.get("prediction", ())
    return shape[1] if getattr(TASKS.get(of), "averaged", False) and len(shape) > 1 else 1


def are_listed(options: Mapping[str, Any], classes: int) -> bool:
    """Whether averages come with what they are made of: by the option ``per_class``, else by how many there are."""
    asked = options.get("per_class")
    return classes <= LISTED_CLASSES if asked is None else bool(asked)


def listed_by_default(names: Sequence[str], options: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The default metrics that are answered for so many classes: without those that are lists where none are."""
    if classes == 1 or are_listed(options, classes):
        return tuple(names)
    return tuple(name for name in names if name not in LISTS)


def text_bytes(
    of: str, names: Sequence[str], options: Mapping[str, Any], classes: int, entries: int | None = None
) -> int:
    """About the most bytes that metrics take as text.

    Args:
        of: The task.
        names: Of the metrics.
        options: The request's ``metrics`` object with its defaults.
        classes: Of :func:`class_count`.
        entries: Of each class, where they are known: a curve has no more points.
    """
    points = int(options["points"]) if entries is None else min(int(options["points"]), entries + 2)
    plain = PLAIN if getattr(TASKS[of], "absent_count", False) else PLAIN | PLAIN_OF_CLASSES
    listed = classes * (NUMBER + INDEX) if are_listed(options, classes) else 0

    def most(name: str) -> int:
        if name in CURVES:
            return classes * points * 3 * NUMBER
        if name == "reliability":
            return int(options["bins"]) * 4 * NUMBER
        if classes == 1 or name in plain:
            return NUMBER
        if name == "confusion_matrix":  # of which most are short, being counts of few among many
            return classes**2 * 8 if classes <= MATRIX_CLASSES else 4 * classes * NUMBER
        return classes * NUMBER if name in LISTS else listed

    return REST + sum(map(most, names))
