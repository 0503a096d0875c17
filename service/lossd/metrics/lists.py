"""Lists with an entry for each class or label: whether answers have them, and how long their text is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lossd.metrics.registry import TASKS

__all__ = ["LISTED_CLASSES", "MAX_TEXT_BYTES", "are_listed", "class_count", "listed_by_default", "text_bytes"]

LISTED_CLASSES = 1 << 14
"""The most classes or labels that are listed by default."""

MAX_TEXT_BYTES = 16 << 20
"""The most bytes of the metrics' text."""

# Metrics that are only such a list; metrics with averages have the list as one of four parts.
LISTS = frozenset(("tp", "fp", "fn", "tn", "support", "confusion_matrix"))
CURVES = frozenset(("roc_curve", "pr_curve"))
# Metrics that are plain numbers even with several classes or labels.
PLAIN = frozenset(
    (
        *("accuracy", "top_k_accuracy", "brier", "log_loss", "ece", "reliability", "mce", "ece_l2", "classwise_ece"),
        *("ace", "hinge", "exact_match", "hamming", "lrap", "coverage_error", "ranking_loss", "precision@k", "ndcg@k"),
    )
)
PLAIN_OF_CLASSES = frozenset(
    ("balanced_accuracy", "adjusted_balanced_accuracy", "mcc", "cohen_kappa", "fw_iou", "generalized_dice")
)
# Metrics with a number and a threshold for each label.
WITH_THRESHOLD = frozenset(
    ("recall_at_precision", "precision_at_recall", "sensitivity_at_specificity", "specificity_at_sensitivity")
)
MATRIX_CLASSES = 256

# The most bytes of a number with its comma; of a class index in a list of undefined ones; and of the rest of an answer.
NUMBER, INDEX, REST = 24, 9, 1024


def class_count(task: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]) -> int:
    """Return the number of classes or labels of a task: the option ``classes``, the prediction's axis 1, or 1."""
    if options.get("classes") is not None:
        return int(options["classes"])
    shape = shapes.get("prediction", ())
    return shape[1] if getattr(TASKS.get(task), "averaged", False) and len(shape) > 1 else 1


def are_listed(options: Mapping[str, Any], classes: int) -> bool:
    """Return whether averages come with each class's value: the option ``per_class``, else by the number of classes."""
    per_class = options.get("per_class")
    return classes <= LISTED_CLASSES if per_class is None else bool(per_class)


def listed_by_default(names: Sequence[str], options: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Return the default metrics for so many classes, without lists if classes are not listed."""
    if classes == 1 or are_listed(options, classes):
        return tuple(names)
    return tuple(name for name in names if name not in LISTS)


def text_bytes(
    task_name: str, names: Sequence[str], options: Mapping[str, Any], classes: int, entries: int | None = None
) -> int:
    """Return about the most bytes of the metrics' text.

    Args:
        task_name: The task.
        names: The metrics' names.
        options: The request's ``metrics`` object with its defaults.
        classes: The number from :func:`class_count`.
        entries: The entries of each class, if known: a curve has no more points.
    """
    points = int(options["points"]) if entries is None else min(int(options["points"]), entries + 2)
    plain = PLAIN if getattr(TASKS[task_name], "absent_count", False) else PLAIN | PLAIN_OF_CLASSES
    listed = classes * (NUMBER + INDEX) if are_listed(options, classes) else 0

    def most(name: str) -> int:
        if name in CURVES:
            return classes * points * 3 * NUMBER
        if name == "reliability":
            return int(options["bins"]) * 4 * NUMBER
        if name in WITH_THRESHOLD:
            return (classes + 1) * (4 * NUMBER + INDEX)
        if classes == 1 or name in plain:
            return NUMBER
        if name == "normalized_confusion_matrix":
            return 4 * classes * NUMBER if getattr(TASKS[task_name], "absent_count", False) else classes**2 * NUMBER
        if name == "confusion_matrix":  # most of its counts are short: few entries among many cells
            return classes**2 * 8 if classes <= MATRIX_CLASSES else 4 * classes * NUMBER
        return classes * NUMBER if name in LISTS else listed

    return REST + sum(map(most, names))
