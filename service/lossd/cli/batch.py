"""Many files, one evaluation each: read ahead, evaluate, report; a bad file is one row, not the end."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lossd_client.errors import Problem, QueueFull, Unauthorized, Unavailable

if TYPE_CHECKING:
    from lossd.cli.files import Source
    from lossd_client import Evaluation

__all__ = ["Evaluate", "Outcome", "Tally", "outcomes"]

Evaluate = Callable[[Mapping[str, Any]], "Evaluation"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one source.

    Attributes:
        source: Its files.
        nbytes: Their size.
        seconds: What its evaluation took, reading left out.
        evaluation: The answer, where there is one.
        problem: What was wrong, where there is none.
    """

    source: Source
    nbytes: int
    seconds: float
    evaluation: Evaluation | None = None
    problem: Problem | None = None


@dataclass(slots=True)
class Tally:
    """What outcomes come to."""

    files: int = 0
    failed: int = 0
    nbytes: int = 0
    evaluating_s: float = 0.0
    numerators: list[float] = field(default_factory=list)
    denominators: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.files += 1
        self.nbytes += outcome.nbytes
        self.evaluating_s += outcome.seconds
        self.failed += outcome.problem is not None
        if outcome.evaluation is not None and outcome.evaluation.reduction is not None:
            self.numerators.append(outcome.evaluation.reduction.numerator)
            self.denominators.append(outcome.evaluation.reduction.denominator)

    @property
    def mean_loss(self) -> float | None:
        """The mean over all that counts in any file, however many elements each has."""
        denominator = math.fsum(self.denominators)
        return math.fsum(self.numerators) / denominator if denominator else None

    @property
    def seconds(self) -> float:
        """Since the first file was begun."""
        return time.monotonic() - self.began

    @property
    def mb_per_s(self) -> float:
        """Files read and evaluated, in 10⁶ bytes a second."""
        return self.nbytes / 1e6 / max(self.seconds, 1e-9)

    def document(self, total: int) -> dict[str, Any]:
        """The last line of the JSON lines."""
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


def outcomes(sources: Sequence[Source], evaluate: Evaluate, *, in_flight: int) -> Iterator[Outcome]:
    """What comes of each source, in their order.

    Args:
        sources: What to evaluate.
        evaluate: How; called from several threads where more than one is in flight.
        in_flight: How many are evaluated at a time; one more is read meanwhile.

    Raises:
        LossdError: There is no service, or it does not want us: the files that follow would fare no better.
    """
    reading = ThreadPoolExecutor(1)
    evaluating = ThreadPoolExecutor(in_flight)
    waiting: deque[Future[Outcome]] = deque()
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


def _outcome(source: Source, inputs: Future[dict[str, Any]], evaluate: Evaluate) -> Outcome:
    nbytes, began = source.nbytes, time.monotonic()
    try:
        read = inputs.result()
        began = time.monotonic()
        evaluation = evaluate(read)
    except Problem as problem:
        if ends_all(problem):
            raise
        return Outcome(source, nbytes, time.monotonic() - began, problem=problem)
    return Outcome(source, nbytes, time.monotonic() - began, evaluation)


def ends_all(error: Problem) -> bool:
    """Whether no other file would fare better: the service is not there, or does not want us."""
    return isinstance(error, QueueFull | Unavailable | Unauthorized)
