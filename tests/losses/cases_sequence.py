"""Rows of the losses of label sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd_client.errors import InvalidRequest, InvalidValue, Problem, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated
from losses.cases_classification import normalised

STEPS, CLASSES, LABELS = 7, 4, 3


def sequences(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Sequences of different lengths; the labels beyond a length are nonsense that nobody may read."""
    blank = parameters.get("blank", 0)
    labels = np.array([c for c in range(CLASSES) if c != blank])
    target = rng.choice(labels, (n, LABELS))
    target_lengths = rng.integers(0, LABELS + 1, n)
    target[np.arange(LABELS) >= target_lengths[:, None]] = 10_000
    scores = rng.normal(0, 1, (STEPS, CLASSES, n))
    return {
        "prediction": normalised(scores).transpose(0, 2, 1),
        "target": target,
        "input_lengths": rng.integers(STEPS - 1, STEPS + 1, n),
        "target_lengths": target_lengths,
    }


def ctc(
    prediction: Tensor,
    target: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """The forward recursion of Graves et al. 2006, section 4.1, in probabilities.

    By way of a log_softmax, which leaves log-probabilities as they are and makes the gradient torch's.
    """
    p = torch.softmax(prediction, 2)
    values = []
    for i, (steps, count) in enumerate(zip(input_lengths.tolist(), target_lengths.tolist(), strict=True)):
        labels = target[i, :count].tolist()
        states = [blank, *(symbol for label in labels for symbol in (label, blank))]
        nothing = p.new_zeros(())
        alpha = [p[0, i, state] if s < 2 else nothing for s, state in enumerate(states)]
        for t in range(1, steps):
            before = alpha
            alpha = []
            for s, state in enumerate(states):
                reaching = before[s] + (before[s - 1] if s >= 1 else 0)
                if s >= 2 and state not in (blank, states[s - 2]):
                    reaching = reaching + before[s - 2]
                alpha.append(reaching * p[t, i, state])
        total = alpha[-1] + (alpha[-2] if count else 0)
        value = 0 * total if zero_infinity and total == 0 else -torch.log(total)
        values.append(value / max(count, 1) if reduction == "mean" else value)
    return torch.stack(values)


ONE = {
    "prediction": np.log([[[0.5, 0.5]], [[0.5, 0.5]]]),
    "target": [[1]],
    "input_lengths": [2],
    "target_lengths": [1],
}
TOO_SHORT = ONE | {"target": [[1, 1]], "target_lengths": [2]}
LONG_ENOUGH = TOO_SHORT | {"prediction": np.log([[[0.5, 0.5]]] * 3), "input_lengths": [3]}


def wrong(error: type[Problem], message: str, parameters: Parameters | None = None, **inputs: Any) -> Refused:
    return Refused(error, message, parameters or {}, ONE | inputs)


CASES = (
    Case(
        "ctc",
        sequences,
        ctc,
        parameters=({}, {"blank": 3}, {"zero_infinity": True}),
        stated=(
            # Three of the four paths of two steps are the label: all but blank, blank.
            Stated("one label in two steps", ONE, -float(np.log(0.75)), gradient=[[[1 / 6, -1 / 6]]] * 2),
            Stated("too short for its labels", TOO_SHORT, "Infinity"),
            Stated("too short, and forgiven", TOO_SHORT, 0, {"zero_infinity": True}, gradient=[[[0.0, 0.0]]] * 2),
            Stated(
                "scores that are no log-probabilities",
                {**ONE, "prediction": [[[2.0, 2.0]]] * 2},
                -4 - float(np.log(3)),
                warnings={"positive_log_probability"},
            ),
            # The same label twice needs a blank in between: one path of eight.
            Stated("sum", LONG_ENOUGH, 3 * float(np.log(2)), {"reduction": "sum"}),
            Stated("mean over the labels", LONG_ENOUGH, 1.5 * float(np.log(2))),
        ),
        refused=(
            wrong(InvalidValue, r"class 2 at target\[0, 0\] is not a label: classes 0 to 1", target=[[2]]),
            wrong(InvalidValue, r"class 0 at target\[0, 0\] .*without the blank, 0", target=[[0]]),
            wrong(InvalidValue, "class -1 at target", target=[[-1]]),
            wrong(InvalidValue, r"must be from 1 to 2, found 3 at input_lengths\[0\]", input_lengths=[3]),
            wrong(InvalidValue, r"must be from 1 to 2, found 0 at input_lengths\[0\]", input_lengths=[0]),
            wrong(InvalidValue, r"must be from 0 to 1, found 2 at target_lengths\[0\]", target_lengths=[2]),
            wrong(InvalidRequest, "blank is 2, prediction has classes 0 to 1", {"blank": 2}),
            wrong(ShapeMismatch, r"target_lengths has shape \(2,\)", target_lengths=[1, 1]),
        ),
        sample_axis={"prediction": 1},
        held_constant=True,
    ),
)
