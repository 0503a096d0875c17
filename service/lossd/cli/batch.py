"""Evaluate many files: read ahead, evaluate, report; a bad file becomes one row and does not stop the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lossd_client.errors import Problem, QueueFull, Unauthorized, Unavailable
from lossd_client.exact import ExactSum

if TYPE_CHECKING:
    from lossd.files.sources import Source
    from lossd_client import Evaluation

__all__ = ["EvaluateFile", "FileOutcome", "FileTotals", "outcomes"]

EvaluateFile = Callable[[Mapping[str, Any]], "Evaluation"]


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """The outcome of one source.

    Attributes:
        source: The source's files.
        nbytes: The size of the files.
        seconds: The time of the evaluation, without reading.
        evaluation: The evaluation; None if it failed.
        problem: The problem; None if there is an evaluation.
    """

    source: Source
    nbytes: int
    seconds: float
    evaluation: Evaluation | None = None
    problem: Problem | None = None


@dataclass(slots=True)
class FileTotals:
    """The sums over all outcomes so far."""

    files: int = 0
    failed: int = 0
    nbytes: int = 0
    evaluating_s: float = 0.0
    numerator: ExactSum = field(default_factory=ExactSum)
    denominator: ExactSum = field(default_factory=ExactSum)
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: FileOutcome) -> None:
        """Add an outcome."""
        self.files += 1
        self.nbytes += outcome.nbytes
        self.evaluating_s += outcome.seconds
        self.failed += outcome.problem is not None
        if outcome.evaluation is not None and outcome.evaluation.reduction is not None:
            self.numerator.add(outcome.evaluation.reduction.numerator)
            self.denominator.add(outcome.evaluation.reduction.denominator)

    @property
    def mean_loss(self) -> float | None:
        """The mean over all files, weighted by the entries that count, rounded once; None if no entry counts."""
        return self.numerator / self.denominator if self.denominator else None

    @property
    def seconds(self) -> float:
        """Seconds since the first file was started."""
        return time.monotonic() - self.started

    @property
    def mb_per_s(self) -> float:
        """The rate at which files are read and evaluated, in 10⁶ bytes a second."""
        return self.nbytes / 1e6 / max(self.seconds, 1e-9)

    def document(self, total: int) -> dict[str, Any]:
        """Return the last line of the JSON lines."""
        return {
            "summary": {
                "files": self.files,
                "of": total,
                "failed": self.failed,
                "mean_loss": self.mean_loss,
                "bytes": self.nbytes,
                "seconds": round(self.seconds, 6),
                "evaluating_seconds": round(self.evaluating_s, 6),
            }
        }


def outcomes(sources: Sequence[Source], evaluate: EvaluateFile, *, in_flight: int) -> Iterator[FileOutcome]:
    """Yield the outcome of each source, in their order.

    Args:
        sources: The sources to evaluate.
        evaluate: Evaluates one source's inputs; threads call it if more than one is in flight.
        in_flight: How many are evaluated at a time; one more is read meanwhile.

    Raises:
        LossdError: The service cannot be reached or refuses the client, so the other files would fail too.
    """
    reading = ThreadPoolExecutor(1)
    evaluating = ThreadPoolExecutor(in_flight)
    waiting: deque[Future[FileOutcome]] = deque()
    try:
        for source in sources:
            inputs = reading.submit(source.read)
            waiting.append(evaluating.submit(_outcome, source, inputs, evaluate))
            if len(waiting) > in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in (reading, evaluating):
            pool.shutdown(cancel_futures=True)


def _outcome(source: Source, inputs: Future[dict[str, Any]], evaluate: EvaluateFile) -> FileOutcome:
    nbytes, started = source.nbytes, time.monotonic()
    try:
        read = inputs.result()
        started = time.monotonic()
        evaluation = evaluate(read)
    except Problem as problem:
        if ends_all(problem):
            raise
        return FileOutcome(source, nbytes, time.monotonic() - started, problem=problem)
    return FileOutcome(source, nbytes, time.monotonic() - started, evaluation)


def ends_all(error: Problem) -> bool:
    """Return whether every other file would fail too: the service is unavailable or refuses the client."""
    return isinstance(error, QueueFull | Unavailable | Unauthorized)
