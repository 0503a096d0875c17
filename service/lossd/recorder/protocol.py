"""The messages between a front and the recorder, over a Unix stream socket.

A frame is two numbers, a head and a payload: the bytes that follow the numbers, the bytes of the head (both 32 bits,
little-endian), a JSON object, and bytes. The head of a request has ``id``, ``op`` and the operation's arguments. The
head of a reply has the same ``id`` and either ``ok``, the outcome, or ``problem``, a problem document, with
``retry_after_s`` if the problem has one. The payload of a reply is a run's state.

A request ``count`` has several batches: ``batches`` has ``run``, ``name``, ``device``, ``build`` and the length of the
report of each, and the payload has the reports one after the other. The outcome is a list: for each batch its outcome,
or an object with ``problem`` and ``retry_after_s``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from lossd_client.errors import Problem

__all__ = [
    "COUNT",
    "REPLY_BYTES",
    "Frame",
    "FrameBuffer",
    "FrameError",
    "NewBatch",
    "batches_of",
    "encode",
    "encode_batches",
    "encode_problem",
    "problem_of",
    "reply_of",
    "request_bytes",
]

COUNT = "count"
"""The operation that counts batches."""

_SIZES = struct.Struct("<II")

HEAD_BYTES = 64 << 20
"""Room for the head of a request, beside its payload: a definition or a result."""

REPLY_BYTES = 2 << 30
"""The most bytes of a reply."""


class FrameError(Exception):
    """The bytes are not frames of this protocol, or a frame is over the limit."""


class Frame(NamedTuple):
    """A message.

    Attributes:
        head: The JSON object.
        payload: The bytes behind it.
    """

    head: dict[str, Any]
    payload: bytes


class NewBatch(NamedTuple):
    """A batch to be counted.

    Attributes:
        run: The run's id.
        name: The batch's name.
        report: The bytes of a :class:`~lossd.runs.report.BatchReport`.
        device: The kind of device that evaluated it.
        build: The version of lossd that evaluated it.
    """

    run: str
    name: str
    report: bytes
    device: str
    build: str


def request_bytes(run_bytes: int) -> int:
    """Return the most bytes of a request, if a run may hold ``run_bytes``."""
    return min(run_bytes + HEAD_BYTES, (1 << 32) - 1)


def encode(head: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Return a frame.

    Raises:
        FrameError: It has 4 GiB or more.
    """
    text = orjson.dumps(head)
    size = len(text) + len(payload)
    if size >= 1 << 32:
        raise FrameError(f"a frame of {size} bytes is too long")
    return b"".join((_SIZES.pack(size, len(text)), text, payload))


def encode_batches(number: int, batches: Sequence[NewBatch]) -> bytes:
    """Return the frame of a request to count batches; errors are those of :func:`encode`."""
    described = [(run, name, device, build, len(report)) for run, name, report, device, build in batches]
    reports = b"".join([batch.report for batch in batches])
    return encode({"id": number, "op": COUNT, "batches": described}, reports)


def batches_of(frame: Frame) -> list[NewBatch]:
    """Return the batches of a request to count them.

    Raises:
        FrameError: It describes others than it has.
    """
    batches, at = [], 0
    try:
        for run, name, device, build, nbytes in frame.head["batches"]:
            batches.append(NewBatch(run, name, frame.payload[at : at + nbytes], device, build))
            at += nbytes
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"a request to count describes no batches: {error!r}") from None
    if at != len(frame.payload):
        raise FrameError(f"a request to count has {len(frame.payload)} bytes of reports, and describes {at}")
    return batches


def encode_problem(number: int, problem: Problem) -> bytes:
    """Return the frame of a reply with a problem."""
    return encode({"id": number, **reply_of(problem)})


def reply_of(problem: Problem) -> dict[str, Any]:
    """Return what a reply says of a problem."""
    found: dict[str, Any] = {"problem": problem.to_json()}
    if problem.retry_after_s is not None:
        found["retry_after_s"] = problem.retry_after_s
    return found


def problem_of(head: Mapping[str, Any]) -> Problem | None:
    """Return the problem of a reply, or of one of a list of outcomes; None if there is none."""
    document = head.get("problem")
    return None if document is None else Problem.from_json(document, retry_after_s=head.get("retry_after_s"))


class FrameBuffer:
    """The bytes of a connection that are no whole frame yet.

    Args:
        limit: The most bytes of a frame. A longer one is refused when its first bytes arrive.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived."""
        self._bytes += data

    def take(self) -> Frame | None:
        """Remove the first frame and return it; None if it has not arrived whole.

        Raises:
            FrameError: It is over the limit, or its head is no JSON object with an id.
        """
        if len(self._bytes) < _SIZES.size:
            return None
        size, head_size = _SIZES.unpack_from(self._bytes)
        if size > self._limit or head_size > size:
            raise FrameError(f"a frame of {size} bytes, {head_size} of them a head, is over the limit {self._limit}")
        end = _SIZES.size + size
        if len(self._bytes) < end:
            return None
        behind = _SIZES.size + head_size
        try:
            with memoryview(self._bytes) as view:
                head, payload = orjson.loads(view[_SIZES.size : behind]), bytes(view[behind:end])
        except orjson.JSONDecodeError as error:
            raise FrameError(f"the head of a frame is no JSON: {error}") from None
        del self._bytes[:end]
        if not isinstance(head, dict) or type(head.get("id")) is not int:
            raise FrameError("the head of a frame is no object with an id")
        return Frame(head, payload)
