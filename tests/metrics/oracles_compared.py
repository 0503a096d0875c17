"""What metrics of distances, neighbours, boxes and latents must be: loops over rows, straight from the definitions.

These oracles take a request as it is, with its ``sample_weight`` or without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist
from scipy.special import expit

from metrics.measuring import Array, Request
from metrics.oracles import BINARY, DECISIONS, MULTILABEL, UNDEFINED
from metrics.samples import Sample

RowOracle = Callable[..., Any]


def weights(request: Request) -> Array:
    """The samples' weights, one each where there are none."""
    n = len(next(iter(request.values())))
    return request.get("sample_weight", np.ones(n))


def unit(vectors: Array) -> Array:
    """At length 1; the zero vector as it is."""
    length = np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


# Pairs and adversaries decide: samples for the oracles of decisions, positive where similar or real.


def _decided(prediction: Array, true: Array, score: Array, weight: Array, **options: Any) -> Sample:
    kept = weight > 0
    image = np.arange(kept.sum())
    return Sample(prediction[kept], true[kept], score[kept], weight[kept], 1, image, weight, options)


def sample_of_pairs(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    """Similar where the Euclidean distance is below half the margin of 1."""
    distance = np.linalg.norm(request["first"].astype(float) - request["second"], axis=1)
    return _decided(distance < 0.5, request["similar"] > 0, -distance, weights(request), distance_of="pairs", **options)


def sample_of_cosine_pairs(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    """Similar where 1 - cosine is below 1/2, half-way to the margin of 0."""
    distance = 1 - (unit(request["first"]) * unit(request["second"])).sum(1).round(12)
    return _decided(
        distance < 0.5, request["similar"] > 0, -distance, weights(request), distance_of="cosine_pairs", **options
    )


def sample_of_distances(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    """Similar where the prediction is below half the margin of 1."""
    distance = request["prediction"].astype(float)
    spread = np.repeat(weights(request), distance[0].size)
    return _decided(
        distance.ravel() < 0.5,
        request["target"].ravel() > 0,
        -distance.ravel(),
        spread,
        distance_of="distances",
        **options,
    )


def sample_of_scores(request: Request, ignore_index: int | None, *, middle: float, **options: Any) -> Sample:
    """Real where the score is not below the middle."""
    score = np.concatenate([request["real"], request["fake"]]).astype(float)
    true = np.arange(len(score)) < len(request["real"])
    score, true = score.reshape(len(score), -1), np.repeat(true, score[0].size)
    probability = score.ravel() if middle else expit(score.ravel())
    return _decided(score.ravel() >= middle, true, probability, np.ones(score.size), **options)


def sample_of_sets(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    """Labels whose indices come before the first -1; predicted from a logit of 0 on."""
    scores, true = request["prediction"].astype(float), np.zeros(request["prediction"].shape, bool)
    for row, indices in zip(true, request["target"].tolist(), strict=True):
        row[indices[: indices.index(-1)] if -1 in indices else indices] = True
    weight = weights(request)
    kept = weight > 0
    image = np.arange(kept.sum())
    return Sample(
        scores[kept] >= 0, true[kept], expit(scores)[kept], weight[kept], scores.shape[1], image, weight, options
    )


def _best_distance(s: Sample) -> Any:
    if not s.true.any():
        return UNDEFINED
    distance = -s.score
    steps = np.unique(distance)
    # Computed distances of float32 embeddings are below a limit where they are by more than eight units of float32.
    unit = 8 * 2.0**-23 * {"distances": 0, "pairs": steps[-1], "cosine_pairs": 1}[s.options["distance_of"]]
    limits = [*(steps[:-1] + steps[1:]) / 2, np.nextafter(steps[-1], np.inf) + unit]
    of_limit = []
    for limit in limits:
        prediction = distance < limit
        of_limit.append(2 * s.weight[prediction & s.true].sum() / (s.weight[prediction].sum() + s.weight[s.true].sum()))
    return limits[int(np.argmax(of_limit))]


DISTANCES = {**DECISIONS, "best_threshold": _best_distance}
ADVERSARIAL = {**DECISIONS, **{name: BINARY[name] for name in ("roc_curve", "pr_curve", "best_threshold")}}
SETS = MULTILABEL
GENERATED = {
    "fooled": lambda r, **_: np.average((r["fake"] >= 0).reshape(len(r["fake"]), -1).mean(1), weights=weights(r))
}
LEAST_SQUARES_GENERATED = {
    "fooled": lambda r, **_: np.average((r["fake"] >= 0.5).reshape(len(r["fake"]), -1).mean(1), weights=weights(r))
}


# Forecasts


def _bounds(r: Request) -> tuple[Array, Array]:
    return (r["lower"], r["upper"]) if "lower" in r else (r["prediction"][:, 0], r["prediction"][:, -1])


def _share(r: Request, entries: Array) -> Any:
    return np.average(entries.reshape(len(entries), -1).astype(float).mean(1), weights=weights(r))


def _inside(r: Request, low: Array, high: Array) -> Array:
    return np.greater_equal(r["target"], low) & np.less_equal(r["target"], high)


def _falling(r: Request) -> Array:
    low, high = _bounds(r)
    return (np.diff(r["prediction"], axis=1) < 0).any(1) if "prediction" in r else low > high


def _extremes(r: Request) -> tuple[Array, Array]:
    ordered = np.sort(r["prediction"], 1)
    return ordered[:, 0], ordered[:, -1]


FORECASTS: dict[str, RowOracle] = {
    "coverage": lambda r, **_: _share(r, _inside(r, *_bounds(r))),
    "width": lambda r, **_: _share(r, np.subtract(*_bounds(r)[::-1])),
    "crossing": lambda r, **_: _share(r, _falling(r)),
}
ENSEMBLES: dict[str, RowOracle] = {
    "coverage": lambda r, **_: _share(r, _inside(r, *_extremes(r))),
    "width": lambda r, **_: _share(r, np.subtract(*_extremes(r)[::-1])),
}


# Triplets and ordered scores


def _near_and_far(r: Request) -> tuple[Array, Array]:
    anchor = r["anchor"].astype(float)
    return np.linalg.norm(anchor - r["positive"], axis=1), np.linalg.norm(anchor - r["negative"], axis=1)


def _ahead(r: Request) -> Array:
    return np.where(r["target"] > 0, r["first"] - r["second"], r["second"] - r["first"]).astype(float)


TRIPLETS: dict[str, RowOracle] = {
    "correct": lambda r, **_: np.average(np.less(*_near_and_far(r)), weights=weights(r)),
    "satisfied": lambda r, **_: np.average(_near_and_far(r)[0] + 1 <= _near_and_far(r)[1], weights=weights(r)),
    "mean_positive_distance": lambda r, **_: np.average(_near_and_far(r)[0], weights=weights(r)),
    "mean_negative_distance": lambda r, **_: np.average(_near_and_far(r)[1], weights=weights(r)),
}
RANKING: dict[str, RowOracle] = {
    "correct": lambda r, **_: np.average((_ahead(r) > 0).reshape(len(r["first"]), -1).mean(1), weights=weights(r)),
    "satisfied": lambda r, **_: np.average((_ahead(r) >= 0).reshape(len(r["first"]), -1).mean(1), weights=weights(r)),
}


# Preferences and sampled tokens


def _log_ratio(r: Request) -> Array:
    return (r["prediction"] - r["sampled"]).astype(float)


def _over_tokens(r: Request, values: Array) -> float:
    return float(np.average(values.mean(1), weights=weights(r)))


PREFERENCES: dict[str, RowOracle] = {
    "preference_accuracy": lambda r, **_: np.average(r["chosen"] > r["rejected"], weights=weights(r)),
    "mean_margin": lambda r, **_: np.average(r["chosen"] - r["rejected"], weights=weights(r)),
    "mean_chosen_reward": lambda r, **_: np.average(r["chosen"], weights=weights(r)),
    "mean_rejected_reward": lambda r, **_: np.average(r["rejected"], weights=weights(r)),
}
POLICY: dict[str, RowOracle] = {
    "clip_low": lambda r, **_: _over_tokens(r, (np.exp(_log_ratio(r)) < 0.8) & (r["advantage"] < 0)),
    "clip_high": lambda r, **_: _over_tokens(r, (np.exp(_log_ratio(r)) > 1.2) & (r["advantage"] > 0)),
    "mean_ratio": lambda r, **_: _over_tokens(r, np.exp(_log_ratio(r))),
    "max_ratio": lambda r, **_: float(np.exp(_log_ratio(r)[weights(r) > 0].max())),
    "sampling_kl_k1": lambda r, **_: _over_tokens(r, -_log_ratio(r)),
    "sampling_kl_k3": lambda r, **_: _over_tokens(r, np.exp(_log_ratio(r)) - 1 - _log_ratio(r)),
    "reference_kl_k1": lambda r, **_: _over_tokens(r, r["prediction"] - r["reference"]),
    "reference_kl_k3": lambda r, **_: _over_tokens(
        r, np.exp(r["reference"] - r["prediction"]) - 1 - (r["reference"] - r["prediction"])
    ),
}


# Neighbours


def _neighbours(query: Array, gallery: Array, leave_out: int | None) -> list[int]:
    """The gallery from near to far; of embeddings as near, the lower index first."""
    distance = np.linalg.norm(gallery - query, axis=1).round(9)
    return [i for i in np.argsort(distance, kind="stable").tolist() if i != leave_out]


def _of_labels(score: Callable[[list[bool], int], float]) -> Callable[..., float]:
    """The mean over the embeddings whose label another has of a score of who, from near to far, has it too."""

    def oracle(r: Request, **options: Any) -> float:
        embedding, label, scores = unit(r["embedding"]), r["label"], []
        for i in range(len(label)):
            found = [bool(label[j] == label[i]) for j in _neighbours(embedding[i], embedding, i)]
            if any(found):
                scores.append(score(found, options.get("k", 5)))
        return float(np.mean(scores)) if scores else UNDEFINED

    return oracle


def _average_precision_at_r(found: list[bool], _: int) -> float:
    share = sum(found)
    return sum(sum(found[: i + 1]) / (i + 1) for i in range(share) if found[i]) / share


LABELLED: dict[str, RowOracle] = {
    "recall@1": _of_labels(lambda found, _: found[0]),
    "precision@1": _of_labels(lambda found, _: found[0]),
    "recall@k": _of_labels(lambda found, k: any(found[:k])),
    "map@r": _of_labels(_average_precision_at_r),
}


def _retrieved(query: str, gallery: str, at: int | None) -> RowOracle:
    def oracle(r: Request, **options: Any) -> float:
        queries, others = unit(r[query]), unit(r[gallery])
        k = at or options.get("k", 5)
        return float(np.mean([i in _neighbours(q, others, None)[:k] for i, q in enumerate(queries)]))

    return oracle


def _uniformity(r: Request, **_: Any) -> float:
    if len(r["first"]) < 2:
        return UNDEFINED
    return float(np.mean([np.log(np.exp(-2 * pdist(unit(r[name])) ** 2).mean()) for name in ("first", "second")]))


VIEWS: dict[str, RowOracle] = {
    "first_to_second@1": _retrieved("first", "second", 1),
    "second_to_first@1": _retrieved("second", "first", 1),
    "first_to_second@k": _retrieved("first", "second", None),
    "second_to_first@k": _retrieved("second", "first", None),
    "alignment": lambda r, **_: np.mean(np.linalg.norm(unit(r["first"]) - unit(r["second"]), axis=1) ** 2),
    "uniformity": _uniformity,
}


# The variational autoencoder, from logits


def _cross_entropy(r: Request, **_: Any) -> float:
    z, t = (r[name].astype(float).reshape(len(r["mean"]), -1) for name in ("prediction", "target"))
    return np.average((np.logaddexp(0, z) - t * z).sum(1), weights=weights(r))


def _divergence(r: Request, **_: Any) -> float:
    mean, s = r["mean"].astype(float), r["log_variance"].astype(float)
    return np.average((mean**2 + np.exp(s) - 1 - s).sum(1) / 2, weights=weights(r))


def _active(r: Request, **_: Any) -> int:
    mean = r["mean"].astype(float)
    centre = np.average(mean, axis=0, weights=weights(r))
    return int((np.average((mean - centre) ** 2, axis=0, weights=weights(r)) > 0.01).sum())


VAE: dict[str, RowOracle] = {"reconstruction": _cross_entropy, "kl": _divergence, "active_units": _active}


# Boxes, corner to corner


def _overlaps(r: Request) -> tuple[Array, Array]:
    """IoU and GIoU of each pair."""
    ious, gious = [], []
    for a, b in zip(r["prediction"].astype(float).tolist(), r["target"].astype(float).tolist(), strict=True):
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        ious.append(width * height / union if union else float(a == b))
        gious.append(ious[-1] - ((hull - union) / hull if hull else 0))
    return np.array(ious), np.array(gious)


def _hits(r: Request, threshold: float = 0.5, **_: Any) -> float:
    return np.average(_overlaps(r)[0] >= threshold, weights=weights(r))


def _per_threshold(r: Request, **_: Any) -> Any:
    thresholds = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    hits = [_hits(r, threshold) for threshold in thresholds]
    return {"iou_threshold": thresholds, "f1": hits, "mean": np.mean(hits)}


BOXES: dict[str, RowOracle] = {
    "mean_iou": lambda r, **_: np.average(_overlaps(r)[0], weights=weights(r)),
    "precision": lambda r, **_: _hits(r),
    "recall": lambda r, **_: _hits(r),
    "f1": lambda r, **_: _hits(r),
    "giou": lambda r, **_: np.average(_overlaps(r)[1], weights=weights(r)),
    "per_threshold": _per_threshold,
}
