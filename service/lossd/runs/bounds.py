"""How far metrics of cut tables may be from the exact ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lossd.exact.steps import Steps
from lossd.metrics.activation import probabilities
from lossd.metrics.deviances import half_least_pinball
from lossd.metrics.registry import Floats
from lossd.request.options import MetricOptions
from lossd.runs.stratum import Stratum
from lossd.runs.totals.reads import TablesRead

__all__ = ["bounds_of"]

AREAS = ("auroc", "average_precision")


def bounds_of(stratum: Stratum, names: Sequence[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``within``, the largest distance from the exact value, and ``bits``, the bits of a score, by metric.

    Args:
        stratum: The stratum.
        names: The metrics.
        found: Their values.
    """
    options = stratum.plan.metric_options
    quantiles = {"error_quantiles": ("error_table", options.quantiles), "medae": ("size_table", [0.5])}
    explained = {"d2_absolute": [0.5], "d2_pinball": options.levels}
    bounds: dict[str, Any] = {}
    for name in names:
        if name in AREAS or name in OF_STEPS:
            if (scores := _table(stratum, "rankings")) is not None:
                bounds[name] = _of_scores(scores, name, options, stratum.facts.activation)
        elif name in quantiles:
            part, levels = quantiles[name]
            if (numbers := _table(stratum, part)) is not None:
                bounds[name] = _of_quantiles(numbers, list(levels)), numbers.table(0, 0).bits
        elif name in explained and (targets := _table(stratum, "target_table")) is not None:
            values = found[name] if isinstance(found[name], list) else [found[name]]
            bounds[name] = _of_explained(targets, explained[name], values), targets.table(0, 0).bits
    return {name: {"within": within, "bits": bits} for name, (within, bits) in bounds.items() if within}


def _of_scores(scores: TablesRead, name: str, options: MetricOptions, activation: str) -> tuple[float, int]:
    """Return how far a metric of the order of scores may be from the exact one, and the bits of a score."""
    if name in AREAS:
        within, bits = scores.bounded(name)
        if name == "auroc" and options.max_fpr is not None:  # as the area is standardised
            within /= 2 * (options.max_fpr - options.max_fpr**2 / 2)
        return within, bits
    columns = [*range(len(scores.columns)), *([None] if len(scores.columns) > 1 else [])]
    found = [scores.steps(0, column) for column in columns]
    cut = [s for s in found if s.highest is not None and s.positives > 0 and s.negatives > 0 and not s.unranked]
    within = max((OF_STEPS[name](s, options, activation) for s in cut), default=0.0)
    return within, min(scores.table(0, column).bits for column in columns)


def _rates(s: Steps) -> tuple[Floats, Floats]:
    """Return false and true positive rates at the edges of the cells, (n + 1,) each."""
    return np.append(0, np.asarray(s.fp / s.negatives, float)), np.append(0, np.asarray(s.tp / s.positives, float))


def _of_ks(s: Steps, options: MetricOptions, activation: str) -> float:
    """Within a cell the curve may turn at either of its other corners."""
    fpr, tpr = _rates(s)
    corners = np.maximum(np.abs(tpr[1:] - fpr[:-1]), np.abs(tpr[:-1] - fpr[1:]))
    return float(corners.max() - np.abs(tpr - fpr).max())


def _of_eer(s: Steps, options: MetricOptions, activation: str) -> float:
    """The curve meets the diagonal in the cell where its edges lie on either side of it."""
    fpr, tpr = _rates(s)
    after = int(np.searchsorted(fpr + tpr - 1, 0))
    return float(fpr[after] - fpr[after - 1])


def _of_gain(s: Steps, options: MetricOptions, activation: str) -> float:
    """The positives of the cell that is divided may all be above or all below."""
    _, tpr = _rates(s)
    scores = np.append(0, np.asarray((s.tp + s.fp) / (s.positives + s.negatives), float))
    after = int(np.searchsorted(scores, options.top))
    return 0.0 if after >= len(scores) or scores[after] == options.top else float(tpr[after] - tpr[after - 1])


def _of_ace(s: Steps, options: MetricOptions, activation: str) -> float:
    """A probability may be off by its cell's width, and a cell that is divided may have its positives on one side."""
    assert s.highest is not None
    low, high = (probabilities(torch.from_numpy(edge.copy()).unsqueeze(1), activation)[:, 0].numpy()
                 for edge in (s.thresholds, s.highest))  # fmt: skip
    whole = s.positives + s.negatives
    tp, fp = (np.diff(np.append(0, np.asarray(found / whole, float))) for found in (s.tp, s.fp))
    divided = np.searchsorted(np.cumsum(tp + fp), np.arange(1, options.bins) / options.bins)
    sides = np.minimum(tp, fp)[np.minimum(divided, len(tp) - 1)]
    return float(2 * ((tp + fp) * (high - low)).sum() + 2 * sides.sum())


OF_STEPS: Mapping[str, Callable[[Steps, MetricOptions, str], float]] = {
    "ks": _of_ks,
    "eer": _of_eer,
    "gain@top": _of_gain,
    "lift@top": lambda s, options, activation: _of_gain(s, options, activation) / options.top,
    "ace": _of_ace,
}


def _table(stratum: Stratum, part: str) -> TablesRead | None:
    found = stratum.totals.get(f"{part}.scores")
    return found if isinstance(found, TablesRead) else None


def _of_quantiles(numbers: TablesRead, levels: list[float]) -> float:
    [bracket] = numbers.quantiles(levels)
    if bracket is None or not (bracket[0] != bracket[1]).any():
        return 0.0
    return float(np.max(bracket[1] / 2 - bracket[0] / 2))


def _of_explained(targets: TablesRead, levels: Sequence[float], values: Sequence[Any]) -> float:
    """Return how far 1 − D/D₀ may be off, where the cells say D₀ only to within δ: (D/D₀) · δ / (D₀ − δ)."""
    middle, share, half_width = targets.table(0, 0).shares()
    if not half_width.any():
        return 0.0
    farthest = 0.0
    for level, value in zip(levels, values, strict=True):
        if isinstance(value, float):
            least = 2 * half_least_pinball(middle, share, level)
            width = max(level, 1 - level) * float((share * half_width).sum())
            farthest = max(farthest, (1 - value) * width / (least - width) if least > width else np.inf)
    return farthest
