"""From one value per class to {macro, micro, weighted, per_class}.

Averages leave out an undefined value, or count it as ``zero_division``. As in scikit-learn, they always leave out a
class that is in neither target nor prediction, but not such a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd.metrics.registry import Array, Floats, Task, spell

__all__ = ["Averages", "average", "complete", "macro_and_weighted"]


def macro_and_weighted(values: Floats, counted: Array, support: Array) -> tuple[Floats, Floats, Array]:
    """Return means over the last axis, the classes: plain, and weighted by support.

    Args:
        values: Values, (..., K); anything where not counted.
        counted: Which values count, (..., K) bool.
        support: The weight of each class in the weighted mean, (..., K). If all counted classes have weight 0, the
            weighted mean is the plain one.

    Returns:
        Macro, weighted and whether they are defined, (...) each.
    """
    kept = np.where(counted, values, 0)
    classes = counted.sum(-1)
    defined = classes > 0
    macro = kept.sum(-1) / np.maximum(classes, 1)
    share = counted * support
    total = share.sum(-1)
    some = total > 0
    weighted = np.where(some, (kept * share).sum(-1) / np.where(some, total, 1), macro)
    return macro, weighted, defined


@dataclass(frozen=True, slots=True)
class Averages:
    """The values of M metrics for B requests of K classes; anything where undefined.

    Attributes:
        per_class: (M, B, K), and ``defined`` in the same shape.
        defined: bool.
        macro: (M, B), and ``weighted`` and ``mean_defined`` in the same shape.
        weighted: Weighted by support.
        mean_defined: bool, of macro and weighted.
        micro: (M, B), the metric of the sums over all classes, and ``micro_defined`` in the same shape.
        micro_defined: bool.
    """

    per_class: Floats
    defined: Array
    macro: Floats
    weighted: Floats
    mean_defined: Array
    micro: Floats
    micro_defined: Array

    def answers(self, task: Task, names: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
        """Return one {macro, micro, weighted, per_class} per metric and request, and record undefined values.

        If classes are not listed, per_class and the record of undefined classes are left out.
        """
        filler = task.zero_division
        means = ((self.macro, self.mean_defined), (self.micro, self.micro_defined), (self.weighted, self.mean_defined))
        columns = [_filled(values, defined, filler) for values, defined in means]
        fields = ["macro", "micro", "weighted"]
        for name, defined in zip(names, self.micro_defined.tolist(), strict=True):
            for position in _missing(defined):
                task.undefined[position][name] = []
        if task.listed:
            count, classes = self.defined.shape[1:]
            shape = (-1, classes)
            rows = _filled(self.per_class.reshape(shape), self.defined.reshape(shape), filler)
            for index, defined in enumerate(self.defined.reshape(shape).tolist()):
                if missing := _missing(defined):
                    task.undefined[index % count][names[index // count]] = missing
            columns.append([rows[first : first + count] for first in range(0, len(rows), count)])
            fields.append("per_class")
        return {
            name: [dict(zip(fields, values, strict=True)) for values in zip(*parts, strict=True)]
            for name, *parts in zip(names, *columns, strict=True)
        }


# Lists instead of arrays: for the few numbers of a batch, NumPy takes several times as long.


def _filled(values: Floats, defined: Array, filler: float | None) -> list[list[Any]]:
    """Return the rows of an array, (..., ...), with ``filler`` where undefined."""
    rows = spell(np.where(defined, values, 0))
    for row, known in zip(rows, defined.tolist(), strict=True):
        for index in _missing(known):
            row[index] = filler
    return rows


def _missing(defined: list[bool]) -> list[int]:
    """Return the indices of the undefined values."""
    return [index for index, known in enumerate(defined) if not known] if False in defined else []


def complete(names: tuple[str, ...], values: Floats, *, listed: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the answers if all is defined: (M, B, K + 3), the classes, then macro, micro and weighted."""
    if not listed:
        return {
            name: [{"macro": macro, "micro": micro, "weighted": weighted} for macro, micro, weighted in requests]
            for name, requests in zip(names, values[..., -3:].tolist(), strict=True)
        }
    return {
        name: [
            {"macro": macro, "micro": micro, "weighted": weighted, "per_class": per_class}
            for *per_class, macro, micro, weighted in requests
        ]
        for name, requests in zip(names, values.tolist(), strict=True)
    }


def average(
    per_class: Floats,
    defined: Array,
    counted: Array,
    support: Array,
    micro: Floats,
    micro_defined: Array,
    filler: float | None,
) -> Averages:
    """Return the averages over the classes that count; undefined ones count as ``filler`` if it is a number."""
    if filler is not None:
        per_class = np.where(defined, per_class, filler)
    macro, weighted, mean_defined = macro_and_weighted(per_class, counted, support)
    return Averages(per_class, defined, macro, weighted, mean_defined, micro, micro_defined)
