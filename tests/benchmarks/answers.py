"""Whether a target answers what the same evaluation in this process answers. What answers otherwise is not timed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import lossd
from benchmarks.dialects import MACRO, VALUES, Question, flat
from benchmarks.targets import Running

METRICS = {
    "multiclass": (*MACRO, "confusion_matrix"),
    "binary": MACRO,
    "regression": VALUES,
}
"""What an answer has to hold beside loss and gradient, by the task of the metrics."""

RELATIVE = 1e-5
"""Of a number; and of the largest entry of a gradient, to its entries."""


class WrongAnswerError(Exception):
    """What a target answered, and what it should have."""


def check(target: Running, requests: Iterable[Question]) -> None:
    """Ask, and compare with what is right.

    Raises:
        WrongAnswerError: It is another, or incomplete.
    """
    for question in requests:
        compare(target.ask(question), expected(question), f"{target.name}, {question[0]['loss']}")


def expected(question: Question) -> dict[str, Any]:
    """The answer of this process, without a server."""
    request, arrays = question
    evaluation = lossd.evaluate(request["loss"], inputs=arrays)
    metrics = flat(evaluation.metrics)
    names = METRICS[evaluation.metrics.task]
    return {
        "loss": evaluation.loss,
        "gradient": evaluation.gradients["prediction"],
        **{name: metrics[name] for name in names},
    }


def compare(answer: dict[str, Any], right: dict[str, Any], who: str) -> None:
    """Raises WrongAnswerError where something is missing or differs."""
    for name, value in right.items():
        if name not in answer:
            raise WrongAnswerError(f"{who}: no {name} in the answer")
        found, reference = np.squeeze(answer[name]), np.squeeze(value)
        if found.shape != reference.shape:
            raise WrongAnswerError(f"{who}: {name} has the shape {found.shape}, not {reference.shape}")
        if name == "confusion_matrix":
            same = bool((found == reference).all())
        else:
            scale = np.abs(reference).max() if reference.ndim else 0.0
            same = np.allclose(found, reference, rtol=RELATIVE, atol=RELATIVE * scale, equal_nan=True)
        if not same:
            raise WrongAnswerError(f"{who}: {name} is {found}, not {reference}")
