"""What the further metrics of scoring must be: scikit-learn, SciPy, or a loop straight from the definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import scipy.ndimage
import scipy.stats
from sklearn import metrics as sk

from metrics.measuring import Array
from metrics.oracles import (
    UNDEFINED,
    Oracle,
    _ece,
    _mean_over,
    _of_labels,
    _weighted,
    quietly,
)
from metrics.samples import Sample

# Real numbers


def _reached(values: Array, weights: Array, level: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.argmax(reached >= level - 1e-12)])


def _medae(s: Sample) -> Any:
    if s.options["weighted"]:
        return _reached(np.abs(s.prediction - s.true), s.weight, 0.5)
    return sk.median_absolute_error(s.true, s.prediction)


def _msle(s: Sample) -> Any:
    if min(s.prediction.min(), s.true.min()) <= -1:
        return UNDEFINED
    return sk.mean_squared_log_error(s.true, s.prediction, sample_weight=s.weight)


def _smape(s: Sample) -> Any:
    each = [
        0.0 if p == y == 0 else 2 * abs(p - y) / (abs(p) + abs(y)) for p, y in zip(s.prediction, s.true, strict=True)
    ]
    return np.average(each, weights=s.weight)


def _wape(s: Sample) -> Any:
    size = (s.weight * np.abs(s.true)).sum()
    return (s.weight * np.abs(s.prediction - s.true)).sum() / size if size else UNDEFINED


def _rse(s: Sample) -> Any:
    return UNDEFINED if np.ptp(s.true) == 0 else 1 - sk.r2_score(s.true, s.prediction, sample_weight=s.weight)


def _nrmse(s: Sample) -> Any:
    rmse = sk.root_mean_squared_error(s.true, s.prediction, sample_weight=s.weight)
    mean = np.average(s.true, weights=s.weight)
    by = {
        "mean": abs(mean),
        "range": np.ptp(s.true),
        "std": np.sqrt(np.average((s.true - mean) ** 2, weights=s.weight)) if np.ptp(s.true) else 0,
        "l2": np.sqrt(np.average(s.true**2, weights=s.weight)),
    }[s.options.get("by", "range")]
    return rmse / by if by else UNDEFINED


def _minkowski(s: Sample) -> Any:
    return scipy.spatial.distance.minkowski(s.prediction, s.true, s.options.get("p", 2), w=s.weight)


def _levels(s: Sample) -> list[float]:
    return s.options.get("levels", [0.5])


def _pinball(s: Sample) -> Any:
    return [sk.mean_pinball_loss(s.true, s.prediction, sample_weight=s.weight, alpha=level) for level in _levels(s)]


def _d2_pinball(s: Sample) -> Any:
    if np.ptp(s.true) == 0:
        return [UNDEFINED] * len(_levels(s))
    return [sk.d2_pinball_score(s.true, s.prediction, sample_weight=s.weight, alpha=level) for level in _levels(s)]


def _unit_deviance(y: float, mean: Any, power: float) -> Any:
    """The definition, in 40 digits, because it subtracts numbers that are nearly equal."""
    y, mean, power = mpmath.mpf(y), mpmath.mpf(mean), mpmath.mpf(power)
    if power == 0:
        return (y - mean) ** 2
    if power == 1:
        return 2 * ((y * mpmath.log(y / mean) if y else 0) - y + mean)
    if power == 2:
        return 2 * (mpmath.log(mean / y) + y / mean - 1)
    first = max(y, 0) ** (2 - power) / ((1 - power) * (2 - power)) if y > 0 or power < 2 else mpmath.mpf(0)
    return 2 * (first - y * mean ** (1 - power) / (1 - power) + mean ** (2 - power) / (2 - power))


def _deviance_of(s: Sample, mean: Callable[[int], Any], power: float) -> Any:
    with mpmath.workdps(40):
        total = sum(
            w * _unit_deviance(y, mean(i), power) for i, (y, w) in enumerate(zip(s.true, s.weight, strict=True))
        )
        return total / mpmath.mpf(float(s.weight.sum()))


def _fits(s: Sample, power: float) -> bool:
    if power == 0:
        return True
    lowest = {True: s.true.min() > 0, False: s.true.min() >= 0}[power >= 2] if power >= 1 else True
    return bool(lowest and s.prediction.min() > 0)


def _deviance(power: float | None) -> Oracle:
    def oracle(s: Sample) -> Any:
        exponent = s.options.get("power", 1.5) if power is None else power
        return float(_deviance_of(s, lambda i: s.prediction[i], exponent)) if _fits(s, exponent) else UNDEFINED

    return oracle


def _d2_tweedie(s: Sample) -> Any:
    power = s.options.get("power", 1.5)
    if not _fits(s, power) or np.ptp(s.true) == 0:
        return UNDEFINED
    with mpmath.workdps(40):
        mean = sum(mpmath.mpf(y) * w for y, w in zip(s.true, s.weight, strict=True)) / sum(map(mpmath.mpf, s.weight))
        return float(1 - _deviance_of(s, lambda i: s.prediction[i], power) / _deviance_of(s, lambda _: mean, power))


def _ranks(values: Array, weights: Array) -> Array:
    """Half-way between the weight below and that up to each value."""
    return np.array([weights[values < v].sum() + weights[values == v].sum() / 2 for v in values])


def _spearman(s: Sample) -> Any:
    if np.ptp(s.prediction) == 0 or np.ptp(s.true) == 0:
        return UNDEFINED
    if not s.options["weighted"]:
        return scipy.stats.spearmanr(s.prediction, s.true).statistic
    covariance = np.cov(_ranks(s.prediction, s.weight), _ranks(s.true, s.weight), aweights=s.weight)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def _kendall(s: Sample) -> Any:
    if np.ptp(s.prediction) == 0 or np.ptp(s.true) == 0:
        return UNDEFINED
    if not s.options["weighted"]:
        return scipy.stats.kendalltau(s.prediction, s.true).statistic
    pairs = s.weight[:, None] * s.weight
    first, second = (np.sign(values[:, None] - values) for values in (s.prediction, s.true))
    return (pairs * first * second).sum() / np.sqrt((pairs * first**2).sum() * (pairs * second**2).sum())


def _ccc(s: Sample) -> Any:
    means = [np.average(values, weights=s.weight) for values in (s.prediction, s.true)]
    p, t = s.prediction - means[0], s.true - means[1]
    cov, var_p, var_t = (np.average(product, weights=s.weight) for product in (p * t, p * p, t * t))
    return 2 * cov / (var_p + var_t + (means[0] - means[1]) ** 2)


def _cosine(s: Sample) -> Any:
    found, weights = [], []
    for row in np.unique(s.image):
        p, t = s.prediction[s.image == row], s.true[s.image == row]
        if p.any() and t.any():
            found.append(sk.pairwise.cosine_similarity(p[None], t[None])[0, 0])
            weights.append(s.image_weight[row])
    return np.average(found, weights=weights) if found else UNDEFINED


REGRESSION: dict[str, Oracle] = {
    "medae": _medae,
    "msle": _msle,
    "rmsle": lambda s: np.sqrt(_msle(s)),
    "smape": _smape,
    "wape": _wape,
    "mase": lambda s: (
        sk.mean_absolute_error(s.true, s.prediction, sample_weight=s.weight) / s.options.get("scale", 2.0)
    ),
    "rse": _rse,
    "nrmse": _nrmse,
    "minkowski": _minkowski,
    "pinball": _pinball,
    "tweedie_deviance": _deviance(None),
    "poisson_deviance": _deviance(1),
    "gamma_deviance": _deviance(2),
    "d2_absolute": lambda s: (
        UNDEFINED if np.ptp(s.true) == 0 else sk.d2_absolute_error_score(s.true, s.prediction, sample_weight=s.weight)
    ),
    "d2_pinball": _d2_pinball,
    "d2_tweedie": _d2_tweedie,
    "spearman": _spearman,
    "kendall": _kendall,
    "ccc": _ccc,
    "cosine_similarity": _cosine,
}


# Decisions and the order of scores


def _share(above: Callable[..., float], below: Callable[..., float]) -> Oracle:
    def oracle(s: Sample) -> Any:
        (tn, fp), (fn, tp) = s.matrix.tolist()
        beneath = below(tp, fp, fn, tn)
        return above(tp, fp, fn, tn) / beneath if beneath else UNDEFINED

    return oracle


def _informedness(s: Sample) -> Any:
    if len(np.unique(s.true[s.weight > 0])) < 2:
        return UNDEFINED
    return sk.balanced_accuracy_score(s.true, s.prediction, sample_weight=s.weight, adjusted=True)


def _markedness(s: Sample) -> Any:
    (tn, fp), (fn, tp) = s.matrix.tolist()
    return tp / (tp + fp) + tn / (tn + fn) - 1 if tp + fp and tn + fn else UNDEFINED


def _likelihood(which: int) -> Oracle:
    return lambda s: s.likelihood_ratios[which]


def _ks(s: Sample) -> Any:
    if s.curve is None:
        return UNDEFINED
    if np.ptp(s.weight) == 0:
        return scipy.stats.ks_2samp(s.score[s.true], s.score[~s.true]).statistic
    return np.abs(s.curve[0] - s.curve[1]).max()


def _eer(s: Sample) -> Any:
    if s.curve is None:
        return UNDEFINED
    for (x, y), (x_after, y_after) in itertools.pairwise(zip(*s.curve, strict=True)):
        before, after = x + y - 1, x_after + y_after - 1
        if before <= 0 <= after:
            return x + (x_after - x) * before / (before - after)
    raise AssertionError("the curve ends at (1, 1)")


def _gain(s: Sample) -> Any:
    positives = s.weight[s.true].sum()
    if not positives:
        return UNDEFINED
    left, found = s.options.get("top", 0.1) * s.weight.sum(), 0.0
    for score in np.unique(s.score)[::-1]:
        here = s.score == score
        part = min(1, left / s.weight[here].sum())
        found += part * s.weight[here & s.true].sum()
        left -= part * s.weight[here].sum()
    return found / positives


def _thresholds(s: Sample) -> Iterator[tuple[float, tuple[float, float, float, float]]]:
    """Each score as the threshold, as answers name it, and the cells of its decisions."""
    scores = np.unique(s.score)[::-1]
    for position, score in enumerate(scores):
        threshold = score
        if "distance_of" in s.options:
            unit = 8 * 2.0**-23 * {"distances": 0, "pairs": -scores[-1], "cosine_pairs": 1}[s.options["distance_of"]]
            last = position == len(scores) - 1
            threshold = np.nextafter(-score, np.inf) + unit if last else -(score + scores[position + 1]) / 2
        yield threshold, s.cuts[position]


def _best(field: str, option: str) -> Oracle:
    """The highest of one rate where another is at least ``option``; of several the one where that is highest."""

    def rates(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
        return {
            "recall": tp / (tp + fn) if tp + fn else UNDEFINED,
            "precision": tp / (tp + fp) if tp + fn else UNDEFINED,
            "sensitivity": tp / (tp + fn) if tp + fn and fp + tn else UNDEFINED,
            "specificity": tn / (fp + tn) if tp + fn and fp + tn else UNDEFINED,
        }

    def oracle(s: Sample) -> Any:
        least, other = s.options.get(option, 0.9), option.removeprefix("min_")
        found = [(rates(*cells), threshold) for threshold, cells in _thresholds(s)]
        good = [(point[field], point[other], -i) for i, (point, _) in enumerate(found) if point[other] >= least - 1e-12]
        if not good:
            return UNDEFINED
        value, _, place = max((round(a, 12), round(b, 12), i) for a, b, i in good)
        return {field: found[-place][0][field], "threshold": found[-place][1]} if value == value else UNDEFINED

    return oracle


RATES: dict[str, Oracle] = {
    "npv": _share(lambda tp, fp, fn, tn: tn, lambda tp, fp, fn, tn: tn + fn),
    "fpr": _share(lambda tp, fp, fn, tn: fp, lambda tp, fp, fn, tn: fp + tn),
    "fnr": _share(lambda tp, fp, fn, tn: fn, lambda tp, fp, fn, tn: fn + tp),
    "informedness": _informedness,
    "markedness": _markedness,
    "positive_likelihood_ratio": _likelihood(0),
    "negative_likelihood_ratio": _likelihood(1),
    "ks": _ks,
    "eer": _eer,
    "gain@top": _gain,
    "lift@top": lambda s: _gain(s) / s.options.get("top", 0.1),
}
BEST: dict[str, Oracle] = {
    "recall_at_precision": _best("recall", "min_precision"),
    "precision_at_recall": _best("precision", "min_recall"),
    "sensitivity_at_specificity": _best("sensitivity", "min_specificity"),
    "specificity_at_sensitivity": _best("specificity", "min_sensitivity"),
}


def _fractions(matrix: Array, normalize: str) -> list[list[float]]:
    whole = {
        "true": matrix.sum(1, keepdims=True), "pred": matrix.sum(0, keepdims=True), "all": matrix.sum(keepdims=True)
    }[normalize]  # fmt: skip
    with np.errstate(invalid="ignore"):
        return (matrix / whole).tolist()


def _normalized(s: Sample) -> Any:
    return _fractions(s.matrix, s.options.get("normalize", "true"))


DECISIONS: dict[str, Oracle] = {**RATES, **BEST, "normalized_confusion_matrix": _normalized}


# Calibration


def _gaps(confidence: Array, right: Array, weight: Array, bins: int) -> Iterator[tuple[float, float]]:
    """The distance of confidence and truth in each bin that holds entries, and its share of the weight."""
    for number in range(bins):
        inside = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1) == number
        if weight[inside].sum():
            means = (np.average(values[inside], weights=weight[inside]) for values in (confidence, right))
            yield abs(next(means) - next(means)), weight[inside].sum() / weight.sum()


def _calibration(norm: Callable[[list[tuple[float, float]]], float]) -> tuple[Oracle, Oracle]:
    def of_decisions(s: Sample) -> Any:
        return norm(list(_gaps(s.score, s.true, s.weight, s.options.get("bins", 15))))

    def of_classes(s: Sample) -> Any:
        confidence = s.score[np.arange(len(s.prediction)), s.prediction]
        return norm(list(_gaps(confidence, s.prediction == s.true, s.weight, s.options.get("bins", 15))))

    return of_decisions, of_classes


MCE = _calibration(lambda gaps: max(gap for gap, _ in gaps))
ECE_L2 = _calibration(lambda gaps: float(np.sqrt(sum(share * gap**2 for gap, share in gaps))))


def _ace(score: Array, true: Array, weight: Array, bins: int) -> float:
    """Fill one bin after the other, with the entries by falling score; equal scores have the mean truth."""
    each = {v: np.average(true[score == v], weights=weight[score == v]) for v in np.unique(score)}
    room = weight.sum() / bins
    gaps, gap, left = [], 0.0, room
    for place in np.argsort(-score, kind="stable"):
        rest = weight[place]
        while rest > 1e-12 * room:
            part = min(rest, left)
            gap += part * (each[score[place]] - score[place])
            rest, left = rest - part, left - part
            if left <= 1e-12 * room:
                gaps.append(abs(gap) / room)
                gap, left = 0.0, room
    return float(np.mean(gaps[:bins]))


def _ace_of_labels(s: Sample) -> Any:
    return np.mean([_ace(s.score[:, k], s.true[:, k], s.weight, s.options.get("bins", 15)) for k in range(s.classes)])


def _ace_of_classes(s: Sample) -> Any:
    each = range(s.classes)
    return np.mean([_ace(s.score[:, k], s.true == k, s.weight, s.options.get("bins", 15)) for k in each])


def _classwise(s: Sample) -> Any:
    each = range(s.classes)
    return np.mean([_ece(s.score[:, k], s.true == k, s.weight, s.options.get("bins", 15)) for k in each])


def _hinge(s: Sample) -> Any:
    with np.errstate(divide="ignore"):
        logit = np.log(s.score / (1 - s.score))
    return np.average(np.maximum(0, 1 - np.where(s.true, logit, -logit)), weights=s.weight)


BINARY: dict[str, Oracle] = {
    **DECISIONS,
    "hinge": _hinge,
    "mce": MCE[0],
    "ece_l2": ECE_L2[0],
    "ace": lambda s: _ace(s.score, s.true, s.weight, s.options.get("bins", 15)),
}


# Labels of each sample


def _of_samples(function: Callable[..., float], *, both: bool = False) -> Oracle:
    """A mean over the samples with a label that applies, and with ``both`` one that does not."""

    def oracle(s: Sample) -> Any:
        kept = s.true.any(1) & (~s.true.all(1) if both else True)
        return function(s.true[kept], s.score[kept], sample_weight=s.weight[kept]) if kept.any() else UNDEFINED

    return oracle


def _precision_at_k(s: Sample) -> Any:
    k, each = min(s.options.get("k", 5), s.classes), []
    for true, score in zip(s.true, s.score, strict=True):
        left, found = k, 0.0
        for value in np.unique(score)[::-1]:
            here = score == value
            part = min(1, left / here.sum())
            found, left = found + part * true[here].sum(), left - part * here.sum()
        each.append(found / k)
    return np.average(each, weights=s.weight)


def _ndcg(s: Sample) -> Any:
    kept = s.true.any(1)
    if not kept.any():
        return UNDEFINED
    arrays = s.true[kept].astype(int), s.score[kept]
    return sk.ndcg_score(*arrays, k=s.options.get("k", 5), sample_weight=s.weight[kept])


MULTILABEL: dict[str, Oracle] = {
    **{name: _of_labels(oracle) for name, oracle in RATES.items()},
    **{
        name: lambda s, metric=oracle: {
            "micro": metric(s.pooled),
            "per_class": [metric(s.label(k)) for k in range(s.classes)],
        }
        for name, oracle in BEST.items()
    },
    **{name: lambda s, metric=BINARY[name]: metric(s.pooled) for name in ("hinge", "mce", "ece_l2")},
    "normalized_confusion_matrix": lambda s: [_normalized(s.label(k)) for k in range(s.classes)],
    "ace": _ace_of_labels,
    "exact_match": lambda s: sk.accuracy_score(s.true, s.prediction, sample_weight=s.weight),
    "hamming": lambda s: sk.hamming_loss(s.true, s.prediction, sample_weight=s.weight),
    "lrap": _of_samples(sk.label_ranking_average_precision_score),
    "coverage_error": _of_samples(sk.coverage_error),
    "ranking_loss": _of_samples(sk.label_ranking_loss, both=True),
    "precision@k": _precision_at_k,
    "ndcg@k": _ndcg,
}


# Several classes


def _of_matrix(function: Callable[[float, float, float, float], tuple[float, float]]) -> Oracle:
    """A quotient of the cells of each class against the rest, averaged over the classes that occur."""

    def oracle(s: Sample) -> Any:
        matrix, parts = s.matrix, []
        for k in range(s.classes):
            rest = np.arange(s.classes) != k
            parts.append(
                function(matrix[k, k], matrix[rest, k].sum(), matrix[k, rest].sum(), matrix[np.ix_(rest, rest)].sum())
            )
        values = np.array([above / below if below else UNDEFINED for above, below in parts])
        actual = matrix.sum(1)
        present = (actual + matrix.sum(0)) > 0
        return {
            "macro": _mean_over(values[present], np.ones(present.sum())),
            "micro": sum(above for above, _ in parts) / sum(below for _, below in parts),
            "weighted": _weighted(values[present], actual[present]),
            "per_class": values,
        }

    return oracle


def _adjusted(s: Sample) -> Any:
    if len(np.unique(s.true[s.weight > 0])) < 2:
        return UNDEFINED
    return quietly(sk.balanced_accuracy_score, s.true, s.prediction, sample_weight=s.weight, adjusted=True)


def _fw_iou(s: Sample) -> Any:
    matrix = s.matrix
    iou = [matrix[k, k] / max(matrix[k].sum() + matrix[:, k].sum() - matrix[k, k], 1e-300) for k in range(s.classes)]
    return np.average(iou, weights=matrix.sum(1))


def _images(s: Sample) -> Iterator[tuple[float, Array, Array, Array]]:
    """The weight of each image with entries that count, and its hits, predictions and targets of each class."""
    for image, weight in enumerate(s.image_weight):
        here = s.image == image
        if weight > 0 and here.any():
            prediction, true = (values[here][:, None] == np.arange(s.classes) for values in (s.prediction, s.true))
            yield weight, (prediction & true).sum(0), prediction.sum(0), true.sum(0)


def _generalized_dice(s: Sample) -> Any:
    found, weights = [], []
    for weight, tp, predicted, true in _images(s):
        factors = [1 / n**2 if n else None for n in true.tolist()]
        largest = max(factor for factor in factors if factor is not None)
        w = np.array([largest if factor is None else factor for factor in factors])
        found.append(2 * (w * tp).sum() / (w * (predicted + true)).sum())
        weights.append(weight)
    return np.average(found, weights=weights) if found else UNDEFINED


def _volumes(s: Sample) -> Any:
    rows = [(weight, predicted - true) for weight, _, predicted, true in _images(s)]
    if not rows:
        return {"macro": UNDEFINED, "per_class": [UNDEFINED] * s.classes}
    each = np.average([row for _, row in rows], weights=[weight for weight, _ in rows], axis=0)
    return {"macro": np.abs(each).mean(), "per_class": each}


def _relative_volumes(s: Sample) -> Any:
    each = []
    for k in range(s.classes):
        rows = [(weight, (predicted[k] - true[k]) / true[k]) for weight, _, predicted, true in _images(s) if true[k]]
        each.append(np.average([v for _, v in rows], weights=[w for w, _ in rows]) if rows else UNDEFINED)
    return {"macro": _mean_over(np.array(each), np.ones(s.classes)), "per_class": each}


def _boundary(region: Array, steps: int) -> Array:
    """What as many erosions take away."""
    return region & ~scipy.ndimage.binary_erosion(region, np.ones((3, 3)), steps, border_value=0)


def _boundary_iou(s: Sample) -> Any:
    prediction, target, ignore_index = s.options["images"]
    steps = max(1, round(0.02 * float(np.hypot(*prediction.shape[1:]))))
    both, either = np.zeros(s.classes), np.zeros(s.classes)
    for weight, p, t in zip(s.image_weight, prediction, target, strict=True):
        kept = np.ones(t.shape, bool) if ignore_index is None else t != ignore_index
        for k in range(s.classes):
            first, second = (_boundary((image == k) & kept, steps) for image in (p, t))
            both[k] += weight * (first & second).sum()
            either[k] += weight * (first | second).sum()
    values = np.array([b / e if e else UNDEFINED for b, e in zip(both, either, strict=True)])
    matrix = s.matrix
    present = (matrix.sum(0) + matrix.sum(1)) > 0
    return {
        "macro": _mean_over(values[present], np.ones(present.sum())),
        "micro": both.sum() / either.sum(),
        "weighted": _weighted(values[present], matrix.sum(1)[present]),
        "per_class": values,
    }


CLASSES: dict[str, Oracle] = {
    "npv": _of_matrix(lambda tp, fp, fn, tn: (tn, tn + fn)),
    "fpr": _of_matrix(lambda tp, fp, fn, tn: (fp, fp + tn)),
    "fnr": _of_matrix(lambda tp, fp, fn, tn: (fn, fn + tp)),
    "adjusted_balanced_accuracy": _adjusted,
    "normalized_confusion_matrix": lambda s: _fractions(s.matrix, s.options.get("normalize", "true")),
    "mce": MCE[1],
    "ece_l2": ECE_L2[1],
    "classwise_ece": _classwise,
    "ace": _ace_of_classes,
    "fw_iou": _fw_iou,
    "generalized_dice": _generalized_dice,
    "volume_difference": _volumes,
    "relative_volume_difference": _relative_volumes,
}
IMAGES: dict[str, Oracle] = {**CLASSES, "boundary_iou": _boundary_iou}
