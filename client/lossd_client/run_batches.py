"""Which batches of a run are sent: their names, their rows, and what was counted before. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lossd_client.arrays import is_tensor
from lossd_client.errors import BatchConflict, InvalidRequest
from lossd_client.messages import Record, tensors_by_name
from lossd_client.progress import Progress
from lossd_client.run_messages import Identity, row_ids
from lossd_client.score import BatchInputs, arguments

__all__ = [
    "OnDuplicate",
    "RunBatch",
    "RunScore",
    "Scoring",
    "name_of_ids",
    "name_of_position",
    "name_of_positions",
    "rows_of",
    "without",
]

OnDuplicate = Literal["error", "drop"]
"""What happens to a batch with rows that the run has counted: it is refused, or the others are sent without them."""

MOST_POSITIONAL = 2
LEADING = ("target", "prediction", "real")
"""The inputs whose first axis counts the rows, before any other; of ``ctc``, it counts time steps of predictions."""


@dataclass(frozen=True, slots=True)
class RunBatch:
    """A batch of a run.

    Attributes:
        name: The batch's name.
        inputs: The inputs by name.
        rows: How many rows it has.
        first: The position of its first row; None unless positions identify the rows.
        sample_id: The rows' ids, (N,); None unless ids identify the rows.
        index: The batch's number in its loader, from 0.
        slices: The value of each slice, for the whole batch or for each row.
    """

    name: str
    inputs: Mapping[str, Any]
    rows: int
    first: int | None
    sample_id: Any
    index: int
    slices: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """The summary of :meth:`RemoteRun.score`.

    Attributes:
        sent: The number of batches that were sent.
        counted_before: The number of batches that were not sent, because the run had counted them before.
        rows: The number of rows of all these batches.
        seconds: The duration in seconds.
        dropped: The number of rows that were left out, because other batches had them; 0 unless ``on_duplicate`` is
            ``"drop"``.
    """

    sent: int
    counted_before: int
    rows: int
    seconds: float
    dropped: int = 0


class Scoring:
    """The batches of a loader on their way to a run.

    Args:
        run: The run's name.
        identity: How the run tells rows apart.
        counted: The batches that the run has counted, each with ``batch``, ``counted.rows`` and ``first``.
        bar: Shows progress.
    """

    def __init__(self, run: str, identity: Identity, counted: Iterable[Record], bar: Progress) -> None:
        self._run = run
        self._identity = identity
        self._counted = {entry.batch: (entry.counted.rows, entry.get("first")) for entry in counted}
        self._bar = bar
        self._sent = self._before = self._rows = self._dropped = 0

    def to_send(self, loader: Iterable[BatchInputs]) -> Iterator[RunBatch]:
        """Yield the batches of a loader that the run has not counted.

        Raises:
            BatchConflict: A batch was counted under the same name with other rows.
            TypeError: A batch has no rows, or lacks what identifies them.
        """
        first = 0
        for index, inputs in enumerate(loader):
            try:
                batch = _batch(index, inputs, self._identity, first)
            except TypeError as error:
                raise TypeError(f"batch {index} of the loader: {error}") from error
            first += batch.rows
            self._rows += batch.rows
            if batch.name not in self._counted:
                self._sent += 1
                yield batch
                continue
            self._check_counted(batch)
            self._before += 1
            self._bar.advance(self._note, skipped=True)

    def received(self, batch: RunBatch, answer: Record) -> None:
        """Take the service's answer to a batch.

        Raises:
            InvalidRequest: The service counts other rows in it, so the positions are wrong.
        """
        dropped = answer.get("dropped", 0)
        self._dropped += dropped
        if self._identity == "position" and answer.counted.rows + dropped != batch.rows:
            raise InvalidRequest(
                f"batch {batch.name} (index {batch.index}) has {answer.counted.rows} rows for the service and "
                f"{batch.rows} by its first axis, so its positions are wrong; start a run with identity batch"
            )
        self._bar.advance(self._note)

    def score(self, seconds: float) -> RunScore:
        """Return what was done."""
        return RunScore(
            sent=self._sent, counted_before=self._before, rows=self._rows, seconds=seconds, dropped=self._dropped
        )

    @property
    def _note(self) -> str:
        return f"{self._before:,} counted before" if self._before else ""

    def _check_counted(self, batch: RunBatch) -> None:
        rows, first = self._counted[batch.name]
        first = first if self._identity == "position" else None  # of ids, it is the first one
        # A loss without an axis of rows, such as an expression, makes one row of a batch.
        same_rows = rows == batch.rows or (self._identity == "batch" and rows == 1)
        if same_rows and first in (None, batch.first):
            return
        was = f"{rows} rows" if first is None else f"{rows} rows from {first}"
        now = f"{batch.rows}" if batch.first is None else f"{batch.rows} from {batch.first}"
        raise BatchConflict(
            f"batch {batch.name} of the run {self._run} was counted with {was} and has {now} now; load the data set in "
            "the same order and with the same batch size as before, or start another run"
        )


def without(batch: RunBatch, counted: Sequence[int]) -> list[RunBatch] | None:
    """Return what a batch has beside rows that the run has counted, as batches; None if it cannot be cut.

    It can be if the first axis of every input counts the rows. By position, each gap ends a batch, whose name says its
    first and its last row.

    Args:
        batch: The batch.
        counted: The positions or ids of the rows, of which there may be more.
    """
    if batch.sample_id is not None:
        places = row_ids(batch.sample_id)
        if len(np.unique(places)) < len(places):  # of a row that stands twice, neither is the right one
            return None
    elif batch.first is not None:
        places = np.arange(batch.first, batch.first + batch.rows)
    else:
        return None
    kept = np.flatnonzero(~np.isin(places, np.asarray(counted, np.int64)))
    if len(kept) == batch.rows or not all(_length(value) == batch.rows for value in batch.inputs.values()):
        return None
    pieces = [kept] if batch.first is None else np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
    return [_piece(batch, piece, places[piece]) for piece in pieces if len(piece)]


def _piece(batch: RunBatch, rows: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> RunBatch:
    """Return some rows of a batch."""
    per_row = {name: value for name, value in batch.slices.items() if not isinstance(value, str | None)}
    return replace(
        batch,
        name=name_of_positions(places[0], len(places)) if batch.first is not None else name_of_ids(places),
        inputs={name: _taken(value, rows) for name, value in batch.inputs.items()},
        rows=len(rows),
        first=None if batch.first is None else int(places[0]),
        sample_id=None if batch.sample_id is None else places,
        slices={**batch.slices, **{name: _taken(value, rows) for name, value in per_row.items()}},
    )


def _taken(value: Any, rows: np.ndarray[Any, Any]) -> Any:
    return [value[row] for row in rows.tolist()] if isinstance(value, list | tuple) else value[rows]


def name_of_position(first: int) -> str:
    """Return the name of a batch that begins at a position."""
    return f"row-{first}"


def name_of_positions(first: int, rows: int) -> str:
    """Return the name of a batch of so many rows from a position on."""
    return f"rows-{first}-{first + rows - 1}"


def name_of_ids(sample_id: Any) -> str:
    """Return the name of the batch of these ids: the same for the same ids in the same order.

    Raises:
        TypeError: As for :func:`~lossd_client.run_messages.row_ids`.
    """
    return f"ids-{hashlib.sha256(row_ids(sample_id).astype('<i8').tobytes()).hexdigest()[:32]}"


def _batch(index: int, batch: BatchInputs, identity: Identity, first: int) -> RunBatch:
    """Return a batch of a loader."""
    positional, named = arguments(batch)
    if len(positional) > MOST_POSITIONAL:
        raise TypeError(
            f"{len(positional)} inputs without names; give prediction and target, or a mapping of names to tensors"
        )
    slices = named.get("slices") or {}
    named = {name: value for name, value in named.items() if name != "slices"}
    inputs = tensors_by_name(*(*positional, None, None)[:MOST_POSITIONAL], named)
    sample_id = inputs.pop("sample_id", None)
    rows = rows_of(inputs)
    if identity != "id":
        if sample_id is not None:
            raise TypeError(f"sample_id belongs to runs of identity id; this one has identity {identity}")
        return RunBatch(f"{index:08}", inputs, rows, first if identity == "position" else None, None, index, slices)
    if sample_id is None:
        raise TypeError("a run of identity id needs the input sample_id; give a mapping of names to tensors")
    return RunBatch(name_of_ids(sample_id), inputs, rows, None, sample_id, index, slices)


def rows_of(inputs: Mapping[str, Any]) -> int:
    """Return the rows of a batch: the length of the first axis.

    Raises:
        TypeError: There is none.
    """
    name = next((name for name in (*LEADING, *inputs) if name in inputs), None)
    if name is None:
        raise TypeError("there are no inputs")
    length = _length(inputs[name])
    if length is None:
        raise TypeError(f"{name} has no axis of rows; give an array, a tensor or a list")
    return length


def _length(value: Any) -> int | None:
    """Return the length of the first axis of an input; None if there is none."""
    if is_tensor(value):
        return int(value.shape[0]) if len(value.shape) else None
    return len(value) if isinstance(value, list | tuple) else None
