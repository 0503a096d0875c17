"""Evaluate many batches, several at a time, and combine their losses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

from lossd_client.concurrent_calls import call_each, call_each_async
from lossd_client.exact import ExactSum
from lossd_client.messages import Evaluation, Reduction
from lossd_client.progress import Progress

__all__ = ["BatchInputs", "Score", "arguments", "default_outputs", "progress_of", "score", "score_async"]

BatchInputs = Mapping[str, Any] | Sequence[Any]
"""The inputs of one request: a mapping by name, or prediction and target in this order."""


@dataclass(frozen=True, repr=False)
class Score:
    """The combined result of many batches.

    Attributes:
        evaluations: The evaluation of each batch, in the order of the batches.
    """

    evaluations: Sequence[Evaluation] = field(default_factory=list)

    @property
    def reduction(self) -> Reduction:
        """The sums of the batches' numerators and denominators, rounded once each."""
        numerator, denominator = self._sums
        return Reduction(float(numerator), float(denominator))

    @property
    def mean_loss(self) -> float:
        """The mean over all entries of all batches, rounded once; 0 if no entry counts."""
        numerator, denominator = self._sums
        return numerator / denominator if denominator else 0.0

    @property
    def _sums(self) -> tuple[ExactSum, ExactSum]:
        parts = [e.reduction for e in self.evaluations if e.reduction is not None]
        return ExactSum(p.numerator for p in parts), ExactSum(p.denominator for p in parts)

    def __repr__(self) -> str:
        return f"Score(mean_loss={self.mean_loss!r}, batches={len(self.evaluations)})"


def arguments(batch: BatchInputs) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return a batch's positional inputs of ``evaluate``, and its inputs by name."""
    return ((), batch) if isinstance(batch, Mapping) else (batch, {})


def default_outputs(loss: object) -> Sequence[str]:
    """Return the default outputs: loss and metrics, or metrics alone without a loss."""
    return ("metrics",) if loss is None else ("loss", "metrics")


def score(
    evaluate: Callable[[BatchInputs], Evaluation],
    batches: Iterable[BatchInputs],
    *,
    in_flight: int,
    progress: bool | None,
) -> Score:
    """Evaluate batches in threads, as :func:`~lossd_client.concurrent_calls.call_each` does."""
    with progress_of(batches, progress) as bar:
        results = _Results(bar)
        call_each(lambda item: evaluate(item[1]), enumerate(batches), results.add, in_flight=in_flight)
    return results.score()


async def score_async(
    evaluate: Callable[[BatchInputs], Awaitable[Evaluation]],
    batches: Iterable[BatchInputs],
    *,
    in_flight: int,
    progress: bool | None,
) -> Score:
    """Evaluate batches in tasks, as :func:`~lossd_client.concurrent_calls.call_each_async` does."""
    with progress_of(batches, progress) as bar:
        results = _Results(bar)
        await call_each_async(lambda item: evaluate(item[1]), enumerate(batches), results.add, in_flight=in_flight)
    return results.score()


def progress_of(batches: Iterable[Any], shown: bool | None) -> Progress:
    """Return the progress bar for batches, whose number is known if they have a length."""
    # A torch DataLoader has __len__, which raises TypeError if its dataset is an iterator.
    return Progress(length_hint(batches) or None, "batches", shown=shown)


class _Results:
    """The evaluations so far, in any order, and their running mean."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._evaluations: dict[int, Evaluation] = {}
        self._numerator, self._denominator = ExactSum(), ExactSum()

    def add(self, item: tuple[int, BatchInputs], evaluation: Evaluation) -> None:
        self._evaluations[item[0]] = evaluation
        if evaluation.reduction is not None:
            self._numerator.add(evaluation.reduction.numerator)
            self._denominator.add(evaluation.reduction.denominator)
        self._bar.advance(self._note)

    @property
    def _note(self) -> str:
        return f"mean loss {self._numerator / self._denominator:.6g}" if self._denominator else ""

    def score(self) -> Score:
        return Score([self._evaluations[index] for index in range(len(self._evaluations))])
