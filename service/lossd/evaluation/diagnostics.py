"""The JSON of an answer: the loss, numerator and denominator of its mean, and diagnostics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lossd.job import Recipe
from lossd_client.wire.json import finite

__all__ = ["WARNINGS", "describe", "passed_up", "warning"]

SCORES = ("logits", "log_probability", "probability")

WARNINGS: Mapping[str, str] = {
    "nothing_to_average": "every entry is ignored or has weight 0: the loss is 0",
    "zero_gradient": "every entry of the gradient is 0",
    "non_finite": "the loss or its gradient is not finite",
    "negative_hessian": "entries of the Hessian are negative: a step by gradient over Hessian would go uphill; set "
    "hessian.floor, or hessian.form to fisher where there is one",
    "non_finite_hessian": "entries of the Hessian, or of its product with the direction, are not finite",
    "zero_vector": "a vector of length 0 has no direction; its gradient is 0",
    "no_positives": "there is no positive pair, or no relevant document",
    "no_negatives": "there is no negative pair",
    "not_a_distribution": "a target's class probabilities do not sum to 1 along axis 1, as those of several classes",
    "negative_divergence": "a divergence is below 0: prediction or target are not probabilities along axis 1",
    "positive_log_probability": "a log-probability is above 0; send the log_softmax of the scores, or use a loss of "
    "logits",
    "tiny_smooth": "smooth is so small that rounding decides the loss of a region without a target",
    "probabilities_as_logits": "predictions are all within [0, 1] and were read as logits, 0 as a probability of 1/2; "
    "if they are probabilities or decisions, send the scores before the sigmoid or softmax to a loss, and set "
    "metrics.from_logits to false for metrics alone",
    "classes_not_listed": "there are too many classes to list them by default; set metrics.per_class to true, or name "
    "the metrics that are lists in metrics.names",
    "k_is_all": "metrics.k is at least the number of those to choose from: a metric @k is 1 whatever is predicted",
    "depends_on_batches": "the loss or a metric compares the rows of a batch with each other: it is a mean "
    "over batches, and depends on how rows were split into batches",
}
"""Every warning of an answer: its code and its sentence."""


def describe(
    recipe: Recipe,
    columns: Sequence[Sequence[float]],
    norm_names: Sequence[str],
    flag_codes: Sequence[str] = (),
    count_non_finite: Callable[[str, int, float], int] | None = None,
    extras: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return the answer of each request, without tensors and metrics.

    Args:
        recipe: The requests' recipe.
        columns: One list per quantity, with one number per request: loss, numerator, denominator, count of valid
            entries, the gradient norms in the order of ``norm_names``, and how often each flag was raised.
        norm_names: The inputs whose gradients were computed.
        flag_codes: Codes of :data:`WARNINGS`.
        count_non_finite: Returns the number of non-finite entries in a gradient, given the input, the request and the
            norm; None if all are finite.
        extras: Further fields of each request's answer; empty if there are none.
    """
    level, want_loss, reduces = _chance_level(recipe), recipe.want_loss, recipe.reduction != "none"
    none_flawed = dict.fromkeys(norm_names, 0)
    answers = []
    isfinite = math.isfinite
    for position, (loss, numerator, denominator, valid, *rest) in enumerate(zip(*columns, strict=True)):
        sound = isfinite(loss)
        diagnostics: dict[str, Any] = {"finite": sound, "valid_count": int(valid)}
        warnings: list[dict[str, str]] = []
        norms = rest[: len(norm_names)]
        if norms:
            flawed = none_flawed
            if count_non_finite is not None:
                flawed = {
                    name: count_non_finite(name, position, norm) for name, norm in zip(norm_names, norms, strict=True)
                }
            sound = sound and all(map(isfinite, norms)) and (flawed is none_flawed or not any(flawed.values()))
            diagnostics["gradient_norm"] = dict(zip(norm_names, norms, strict=True))
            diagnostics["non_finite_gradient_entries"] = flawed
        if denominator == 0:
            warnings.append(warning("nothing_to_average"))
        elif norms and not any(norms):
            warnings.append(warning("zero_gradient"))
        if not sound:
            warnings.append(warning("non_finite"))
        if flag_codes:
            raised = zip(flag_codes, rest[len(norms) :], strict=True)
            warnings.extend(warning(code, int(times)) for code, times in raised if times)
        answer: dict[str, Any] = {}
        if want_loss:
            if reduces:
                answer["loss"] = loss
            answer["reduction"] = {"numerator": numerator, "denominator": denominator}
        if extras:
            answer.update(extras[position])
        if level is not None:
            diagnostics["chance_level"] = level
        diagnostics["warnings"] = warnings
        answer["diagnostics"] = diagnostics
        # A sum may be infinite although its mean is finite.
        plain = sound and isfinite(numerator) and isfinite(denominator) and not any(extras)
        answers.append(answer if plain else finite(answer))
    return answers


def _chance_level(recipe: Recipe) -> float | None:
    """Return the cross-entropy of a uniform guess; None unless the loss takes class scores."""
    if recipe.kind != "rows" or recipe.domains.get("prediction") not in SCORES:
        return None
    return math.log(recipe.classes or 2)


def warning(code: str, times: int | None = None) -> dict[str, str]:
    """Return a warning in the form that answers have."""
    detail = WARNINGS[code] if times is None else f"{WARNINGS[code]} ({times} times)"
    return {"code": code, "detail": detail}


def passed_up(terms: Sequence[tuple[str, Sequence[Mapping[str, str]]]], *, per_sample: bool) -> list[dict[str, str]]:
    """Return the warnings of a composed loss's terms, one of each code, without codes that describe the whole loss.

    Args:
        terms: Each term's place, and its warnings.
        per_sample: Whether the warnings are those of samples.
    """
    details: dict[str, list[str]] = {}
    for place, found in terms:
        for one in found:
            if one["code"] not in ("zero_gradient", "non_finite", "nothing_to_average" if per_sample else ""):
                details.setdefault(one["code"], []).append(f"{place}: {one['detail']}")
    return [{"code": code, "detail": "; ".join(sentences)} for code, sentences in details.items()]
