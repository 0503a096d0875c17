"""Merges the states of a run's batches, so that a few states hold what thousands of batches contributed.

The states of a run cover its batches in their order. New ones are of one batch each; short ones are stored together,
those of a commit in one row. Once there are enough of these, they become one state, a fold. An older fold is merged
into the new one while it is less than twice as long, so each fold is at least twice as long as the next. States whose
length does not grow thus end in one fold, and states that grow with their rows in a few, and a byte is rewritten as
often as a logarithm of their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lossd.runs import encoding
from lossd.runs.state import RunState
from lossd_client.errors import InternalError, InvalidRequest

__all__ = [
    "PENDING",
    "PENDING_BYTES",
    "Covered",
    "described",
    "is_due",
    "merged",
    "oldest_to_fold",
    "state_of",
]

PENDING = 256
PENDING_BYTES = 32 << 20
"""So many batches, or bytes of their states, are folded."""

ROW, ROW_BYTES = 256, 512 << 10
"""So many states, or stored bytes of them, are read together."""


class Covered(NamedTuple):
    """A row of states: ``batches`` batches from ``ordinal`` on, and for how many bytes it counts."""

    ordinal: int
    batches: int
    nbytes: int


def is_due(pending: int, pending_bytes: int) -> bool:
    """Return whether batches that no fold covers are to be folded."""
    return pending >= PENDING or (pending > 1 and pending_bytes >= PENDING_BYTES)


def oldest_to_fold(states: Sequence[Covered], pending: int) -> int:
    """Return the ordinal from which states become one fold.

    Args:
        states: The states of a run, in the order of their batches.
        pending: The ordinal of the first batch that no fold covers.
    """
    nbytes, start = 0, len(states)
    while start and (states[start - 1].ordinal >= pending or states[start - 1].nbytes < 2 * nbytes):
        start -= 1
        nbytes += states[start].nbytes
    return states[start].ordinal if start < len(states) else 0


def merged(stored: Iterable[bytes]) -> RunState:
    """Return one state of all rows.

    Some states are read together, which takes a fifth of the time. States of about as many batches are then merged, two
    at a time: what grows with the rows is copied as often as a logarithm of their number.

    Args:
        stored: States as they are stored: packed, or several joined.

    Raises:
        ValueError: There is none.
        InternalError: One is damaged.
    """
    waiting: list[tuple[int, RunState]] = []
    for size, state in _in_rows(stored):
        while waiting and waiting[-1][0] <= size:
            others, earlier = waiting.pop()
            earlier.merge(state)
            size, state = size + others, earlier
        waiting.append((size, state))
    if not waiting:
        raise ValueError("no states to merge")
    _, answer = waiting.pop()
    while waiting:
        _, earlier = waiting.pop()
        earlier.merge(answer)
        answer = earlier
    return answer


def _in_rows(stored: Iterable[bytes]) -> Iterator[tuple[int, RunState]]:
    """Yield how many states were read together, and the state of their rows."""
    row: list[bytes] = []
    nbytes = 0
    for data in stored:
        row += encoding.each_unpacked(data)
        nbytes += len(data)
        if len(row) >= ROW or nbytes >= ROW_BYTES:
            yield len(row), state_of(row)
            row, nbytes = [], 0
    if row:
        yield len(row), state_of(row)


def described(data: bytes) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    """Return the description and the parts of the bytes of a state.

    Raises:
        InternalError: They are damaged.
    """
    try:
        found, parts, _ = encoding.decode(data)
    except InvalidRequest as problem:
        raise InternalError(problem.detail) from problem
    return found, parts


def state_of(many: Sequence[bytes]) -> RunState:
    """Return the state of the rows of several states, given their bytes.

    Raises:
        InternalError: One is damaged.
    """
    try:
        return RunState.merged(many)
    except InvalidRequest as problem:
        raise InternalError(problem.detail) from problem
