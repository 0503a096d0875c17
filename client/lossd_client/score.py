"""Many batches, several requests in flight, one score."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from lossd_client.messages import Evaluation, Reduction
from lossd_client.progress import Progress

__all__ = ["Batch", "Score", "arguments", "score", "score_async", "scored"]

Batch = Mapping[str, Any] | Sequence[Any]
"""The inputs of one request: by name; or prediction and target, in this order."""


@dataclass(frozen=True, repr=False)
class Score:
    """What many batches come to.

    Attributes:
        evaluations: The answer to each batch, in the order of the batches.
    """

    evaluations: Sequence[Evaluation] = field(default_factory=list)

    @property
    def reduction(self) -> Reduction:
        """The sums of the batches' numerators and denominators."""
        parts = [e.reduction for e in self.evaluations if e.reduction is not None]
        return Reduction(math.fsum(p.numerator for p in parts), math.fsum(p.denominator for p in parts))

    @property
    def mean_loss(self) -> float:
        """The mean over all that counts in any batch; 0 where nothing does. Batches need not be of one size."""
        numerator, denominator = self.reduction
        return numerator / denominator if denominator else 0.0

    def __repr__(self) -> str:
        return f"Score(mean_loss={self.mean_loss!r}, batches={len(self.evaluations)})"


def arguments(batch: Batch) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """A batch as the positional inputs of ``evaluate``, and those by name."""
    return ((), batch) if isinstance(batch, Mapping) else (batch, {})


def scored(loss: object) -> Sequence[str]:
    """What is asked for where nothing else is said: no gradient, and without a loss only metrics."""
    return ("metrics",) if loss is None else ("loss", "metrics")


def score(
    evaluate: Callable[[Batch], Evaluation], batches: Iterable[Batch], *, in_flight: int, progress: bool | None
) -> Score:
    """Evaluate batches in threads while more are drawn; never more than ``in_flight`` of them are held."""
    tally = _Tally()
    waiting: dict[concurrent.futures.Future[Evaluation], int] = {}
    with _bar(batches, progress) as bar, concurrent.futures.ThreadPoolExecutor(in_flight) as pool:

        def gather() -> None:
            for done in concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED).done:
                tally.add(waiting.pop(done), done.result())
                bar.advance(tally.note)

        try:
            for index, batch in enumerate(batches):
                while len(waiting) >= in_flight:
                    gather()
                waiting[pool.submit(evaluate, batch)] = index
            while waiting:
                gather()
        finally:
            pool.shutdown(cancel_futures=True)
    return tally.score()


async def score_async(
    evaluate: Callable[[Batch], Awaitable[Evaluation]],
    batches: Iterable[Batch],
    *,
    in_flight: int,
    progress: bool | None,
) -> Score:
    """Evaluate batches in tasks while more are drawn; never more than ``in_flight`` of them are held."""
    tally = _Tally()
    waiting: dict[asyncio.Future[Evaluation], int] = {}
    with _bar(batches, progress) as bar:

        async def gather() -> None:
            for done in (await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))[0]:
                tally.add(waiting.pop(done), done.result())
                bar.advance(tally.note)

        try:
            for index, batch in enumerate(batches):
                while len(waiting) >= in_flight:
                    await gather()
                waiting[asyncio.ensure_future(evaluate(batch))] = index
                await asyncio.sleep(0)  # drawing a batch may take long: what is in flight begins before it
            while waiting:
                await gather()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    return tally.score()


def _bar(batches: Iterable[Batch], shown: bool | None) -> Progress:
    return Progress(len(batches) if isinstance(batches, Sized) else None, "batches", shown=shown)


class _Tally:
    """The answers that are there, in whatever order they come."""

    def __init__(self) -> None:
        self._found: dict[int, Evaluation] = {}
        self._numerator = self._denominator = 0.0

    def add(self, index: int, evaluation: Evaluation) -> None:
        self._found[index] = evaluation
        if evaluation.reduction is not None:
            self._numerator += evaluation.reduction.numerator
            self._denominator += evaluation.reduction.denominator

    @property
    def note(self) -> str:
        return f"mean loss {self._numerator / self._denominator:.6g}" if self._denominator else ""

    def score(self) -> Score:
        return Score([self._found[index] for index in range(len(self._found))])
