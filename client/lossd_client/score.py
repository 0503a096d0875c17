"""Evaluate many batches, several at a time, and combine their losses."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from lossd_client.exact import ExactSum
from lossd_client.messages import Evaluation, Reduction
from lossd_client.progress import Progress

__all__ = ["BatchInputs", "Score", "arguments", "default_outputs", "score", "score_async"]

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
        """The mean over all batches, which may differ in size, rounded once; 0 if no entry counts."""
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
    """Evaluate batches in threads and draw the next ones meanwhile; at most ``in_flight`` are held."""
    results = _Results()
    in_progress: dict[concurrent.futures.Future[Evaluation], int] = {}
    with _progress_of(batches, progress) as bar, concurrent.futures.ThreadPoolExecutor(in_flight) as pool:

        def gather() -> None:
            for done in concurrent.futures.wait(in_progress, return_when=concurrent.futures.FIRST_COMPLETED).done:
                results.add(in_progress.pop(done), done.result())
                bar.advance(results.note)

        try:
            for index, batch in enumerate(batches):
                while len(in_progress) >= in_flight:
                    gather()
                in_progress[pool.submit(evaluate, batch)] = index
            while in_progress:
                gather()
        finally:
            pool.shutdown(cancel_futures=True)
    return results.score()


async def score_async(
    evaluate: Callable[[BatchInputs], Awaitable[Evaluation]],
    batches: Iterable[BatchInputs],
    *,
    in_flight: int,
    progress: bool | None,
) -> Score:
    """Evaluate batches in tasks and draw the next ones meanwhile; at most ``in_flight`` are held."""
    results = _Results()
    in_progress: dict[asyncio.Future[Evaluation], int] = {}
    with _progress_of(batches, progress) as bar:

        async def gather() -> None:
            for done in (await asyncio.wait(in_progress, return_when=asyncio.FIRST_COMPLETED))[0]:
                results.add(in_progress.pop(done), done.result())
                bar.advance(results.note)

        try:
            for index, batch in enumerate(batches):
                while len(in_progress) >= in_flight:
                    await gather()
                in_progress[asyncio.ensure_future(evaluate(batch))] = index
                await asyncio.sleep(0)  # drawing the next batch may take long: this task starts first
            while in_progress:
                await gather()
        finally:
            for task in in_progress:
                task.cancel()
            await asyncio.gather(*in_progress, return_exceptions=True)
    return results.score()


def _progress_of(batches: Iterable[BatchInputs], shown: bool | None) -> Progress:
    return Progress(len(batches) if isinstance(batches, Sized) else None, "batches", shown=shown)


class _Results:
    """The evaluations so far, in any order, and their running mean."""

    def __init__(self) -> None:
        self._evaluations: dict[int, Evaluation] = {}
        self._numerator, self._denominator = ExactSum(), ExactSum()

    def add(self, index: int, evaluation: Evaluation) -> None:
        self._evaluations[index] = evaluation
        if evaluation.reduction is not None:
            self._numerator.add(evaluation.reduction.numerator)
            self._denominator.add(evaluation.reduction.denominator)

    @property
    def note(self) -> str:
        return f"mean loss {self._numerator / self._denominator:.6g}" if self._denominator else ""

    def score(self) -> Score:
        return Score([self._evaluations[index] for index in range(len(self._evaluations))])
