"""What a compiled pass takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_NORM", "Pass", "PassOutput", "Work"]

Array = npt.NDArray[Any]
P = TypeVar("P")
R = TypeVar("R")

LEAST_NORM = 1e-140
"""The least norm of a gradient the squares of whose entries have surely not left float64's range."""


class Work(NamedTuple):
    """A batch as a pass takes it; all floats are in float32, or all in float64.

    Attributes:
        rows: The rows of each request.
        numbers: The parameters that may differ, by name, with a value for each request.
        inputs: The inputs by name.
        answers: The arrays to write, by name.
        threads: The threads that share a large request; None for the calling thread alone.
    """

    rows: Sequence[int]
    numbers: Mapping[str, Sequence[float]]
    inputs: Mapping[str, Array]
    answers: Mapping[str, Array]
    threads: ThreadPoolExecutor | None = None

    def starts(self) -> Array:
        """Return the first row of each request, and the one after the last, (B + 1,)."""
        return np.fromiter(accumulate(self.rows, initial=0), np.int64, len(self.rows) + 1)

    def number(self, name: str) -> Array:
        """Return each request's value of a parameter, (B,); 0 if the loss has no parameter of that name."""
        return np.array(self.numbers[name]) if name in self.numbers else np.zeros(len(self.rows))

    def in_parallel(self, function: Callable[[P], R], parts: Sequence[P]) -> Iterable[R]:
        """Return the function's results for the parts, in their order."""
        return map(function, parts) if self.threads is None or len(parts) == 1 else self.threads.map(function, parts)


class PassOutput(NamedTuple):
    """What a pass returns; it writes the gradient into the answers.

    Attributes:
        columns: One row per quantity, one number per request: loss, numerator and denominator of its mean, entries that
            count, norms of the gradients in the order of the recipe, and how often each flag was raised.
        doubtful: Whether the general way must evaluate a request, (B,) bool.
        counted: The counts that metrics need, by the name that the task has for them.
        flags: The codes of the flags.
    """

    columns: Array
    doubtful: Array
    counted: Mapping[str, Array] = MappingProxyType({})
    flags: tuple[str, ...] = ()


Pass = Callable[[Work], PassOutput | None]
"""A function that evaluates requests of one recipe; None if the general way must evaluate all of them."""
