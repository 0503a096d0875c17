"""The messages between front and worker, over a Unix stream socket.

Front to worker: a length and a JSON manifest, with the file descriptors of slabs that are new to the worker. Worker to
front: a fixed head and one JSON text for each request. Tensors are never sent here; they are in the slab.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from lossd_client.errors import Problem

__all__ = ["HELLO", "LANE", "LENGTH", "Reply", "decode_answers", "encode_reply", "take_frames", "take_replies"]

LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<QQQI")  # batch, copy ns, compute ns, answers
_ANSWER = struct.Struct("<?I")  # whether it is a problem, bytes of its text

HELLO = 0
"""The batch number of a worker's first reply. Its one answer describes the worker, or says why it cannot work."""

LANE = (1 << 64) - 1
"""The batch number of a reply whose one answer has the address of a lane for short batches."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's reply.

    Attributes:
        batch: The batch it answers.
        copy_ns: Time spent moving tensors between slab and device, nanoseconds.
        compute_ns: Time spent evaluating, nanoseconds.
        answers: For each request: whether the answer is a problem, and its JSON text.
    """

    batch: int
    copy_ns: int
    compute_ns: int
    answers: Sequence[tuple[bool, bytes]]


def encode_reply(reply: Reply) -> bytes:
    """Return the reply as bytes, with its length first."""
    pieces = [_HEAD.pack(reply.batch, reply.copy_ns, reply.compute_ns, len(reply.answers))]
    for problem, text in reply.answers:
        pieces.append(_ANSWER.pack(problem, len(text)))
        pieces.append(text)
    body = b"".join(pieces)
    return LENGTH.pack(len(body)) + body


def take_frames(buffer: bytearray) -> Iterator[bytes]:
    """Yield every complete frame at the start of the buffer, and remove them."""
    at = 0
    while len(buffer) - at >= LENGTH.size:
        (size,) = LENGTH.unpack_from(buffer, at)
        if len(buffer) - at - LENGTH.size < size:
            break
        at += LENGTH.size
        yield bytes(buffer[at : at + size])
        at += size
    if at:
        del buffer[:at]


def take_replies(buffer: bytearray) -> Iterator[Reply]:
    """Yield every complete reply at the start of the buffer, and remove them."""
    for frame in take_frames(buffer):
        batch, copy_ns, compute_ns, count = _HEAD.unpack_from(frame)
        answers, at = [], _HEAD.size
        for _ in range(count):
            problem, size = _ANSWER.unpack_from(frame, at)
            at += _ANSWER.size
            answers.append((problem, frame[at : at + size]))
            at += size
        yield Reply(batch, copy_ns, compute_ns, answers)


def decode_answers(reply: Reply) -> list[bytes | Problem]:
    """Return each request's answer, as its JSON text or as a problem."""
    return [Problem.from_json(orjson.loads(text)) if problem else text for problem, text in reply.answers]
