"""Every loss at a small size by lossd and by a service of one route, in which someone wrote it inline."""

from __future__ import annotations

import http.client
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.answers import WrongAnswerError
from benchmarks.comparison import OURS, WARM_UP_S, Step, one_round, started
from benchmarks.dialects import Question
from benchmarks.every_loss import INPUTS, requests
from benchmarks.goals import Verdict
from benchmarks.targets import ANSWER_S, INLINE, TARGETS, Running
from lossd_client.wire import safetensors

CONNECTIONS = (1, 16)
TOLERANCE = 1e-4
WORST, MEDIAN = (0.8, 1.2), (2.0, 3.0)
"""Required and better still: the least ratio of a loss at one connection, and the median ratio at sixteen."""

Numbers = Mapping[str, Any]
Gradients = Mapping[str, np.ndarray[Any, Any]]


LEFT_OUT = (
    "soft_f1", "multilabel_margin", "generalized_dice", "feature_matching", "policy_gradient", "orpo", "kto",
    "lambda_loss", "list_mle", "approx_ndcg", "ctc",
)  # fmt: skip
"""Losses that the peer does not have; nor has it those composed of others but two, formulas, and networks."""


def answer(target: Running, question: Question) -> tuple[Numbers, Gradients]:
    """Return what a target answers: loss and metrics, and the gradients.

    Raises:
        RuntimeError: It answers with an error.
    """
    post = target.dialect.post(question)
    connection = http.client.HTTPConnection(*target.address, timeout=ANSWER_S)
    try:
        connection.request("POST", post.path, post.body, dict(post.headers))
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{target.name}, {question[0]['loss']}: {response.status}: {body[:500]!r}")
    tensors, metadata = safetensors.decode(body)
    gradients = {name: tensor.numpy() for name, tensor in tensors.items() if name.startswith("gradient.")}
    return json.loads(metadata["result"]), gradients


def compare(ours: tuple[Numbers, Gradients], theirs: tuple[Numbers, Gradients], who: str) -> None:
    """Check that the peer answers the same loss, gradients and metrics.

    Raises:
        WrongAnswerError: Something differs.
    """
    (our_numbers, our_gradients), (their_numbers, their_gradients) = ours, theirs
    if our_gradients.keys() != their_gradients.keys():
        raise WrongAnswerError(f"{who}: gradients {sorted(their_gradients)}, not {sorted(our_gradients)}")
    pairs = [("loss", our_numbers["loss"], their_numbers["loss"])]
    pairs += [(name, gradient, their_gradients[name]) for name, gradient in our_gradients.items()]
    for name, value in their_numbers["metrics"].items():
        known = our_numbers["metrics"][name]
        pairs.append((name, known["macro"] if isinstance(known, dict) else known, value))
    for name, right, found in pairs:
        right, found = np.asarray(right, float), np.asarray(found, float)
        scale = float(np.abs(right).max(initial=0.0, where=np.isfinite(right)))
        if right.shape != found.shape or not np.allclose(
            found, right, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True
        ):
            raise WrongAnswerError(f"{who}: {name} is {found}, not {right}")


HEADINGS = (
    "loss",
    *(f"{what}, c={count}" for count in CONNECTIONS for what in ("lossd /s", "inline /s", "ratio", "of CPU")),
)


def names() -> list[str]:
    """Return the losses that are measured."""
    return [name for name in INPUTS if name not in LEFT_OUT]


def measure(
    chosen: Sequence[str], rounds: int, seconds: float, step: Step
) -> tuple[list[tuple[Any, ...]], list[Verdict]]:
    """Return a row for each loss, under ``HEADINGS``, and the verdicts.

    Raises:
        RuntimeError: One of the two does not start, or answers with an error.
        WrongAnswerError: The two answer differently.
    """
    rows: list[tuple[Any, ...]] = []
    ratios: dict[int, list[float]] = {count: [] for count in CONNECTIONS}
    questions, absent = requests(), dict[str, str]()
    with started([OURS, INLINE.name], absent, step, {OURS: TARGETS[OURS], INLINE.name: INLINE}) as running:
        if absent:
            raise RuntimeError(f"not measured: {absent}")
        for name in chosen:
            answers = []
            for target in running:
                target.resume()
                answers.append(answer(target, questions[name]))
                target.halt()
            compare(*answers, name)
            row: list[Any] = [name]
            for count in CONNECTIONS:
                step(f"{name}, {count} at a time")
                taken = _rounds(running, questions[name], count, rounds, seconds)
                ours, theirs = ([each["per_second"] for each in taken[target.name]] for target in running)
                ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
                cpu = statistics.median(
                    b["cpu_ms"] / a["cpu_ms"] for a, b in zip(taken[OURS], taken[INLINE.name], strict=True)
                )
                row += [statistics.median(ours), statistics.median(theirs), ratio, cpu]
                ratios[count].append(ratio)
            rows.append(tuple(row))
    worst = chosen[int(np.argmin(ratios[1]))]
    verdicts = [
        Verdict(f"the worst loss, {worst}, 1 at a time", min(ratios[1]), *WORST, "×"),
        Verdict("the median loss, 16 at a time", statistics.median(ratios[16]), *MEDIAN, "×"),
    ]
    return rows, verdicts


def _rounds(
    running: Sequence[Running], question: Question, count: int, rounds: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Return the rounds of each target, alternately; one to warm up comes before."""
    posts = {target.name: [target.dialect.post(question)] for target in running}
    taken: dict[str, list[dict[str, float]]] = {target.name: [] for target in running}
    for number in range(rounds + 1):
        for target in running if number % 2 else reversed(running):
            figures = one_round(target, posts[target.name], count, seconds if number else WARM_UP_S)
            if number:
                taken[target.name].append(figures)
    return taken
