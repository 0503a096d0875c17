"""The frames between fronts and the recorder: whole, in pieces, over a limit, broken."""

from __future__ import annotations

import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossd.recorder.protocol import (
    Frame,
    FrameBuffer,
    FrameError,
    encode,
    encode_problem,
    problem_of,
    request_bytes,
)
from lossd_client.errors import PROBLEMS, DuplicateRows, Unavailable

texts = st.dictionaries(st.text(max_size=8), st.integers(-(2**53), 2**53) | st.text(max_size=8), max_size=4)
messages = st.lists(st.tuples(texts, st.binary(max_size=64)), max_size=5)


@given(messages, st.lists(st.integers(1, 40), max_size=30))
def test_frames_arrive_as_they_were_sent_however_they_are_cut(
    sent: list[tuple[dict[str, object], bytes]], cuts: list[int]
) -> None:
    frames = [Frame({**head, "id": number}, payload) for number, (head, payload) in enumerate(sent)]
    stream = b"".join(encode(*frame) for frame in frames)
    buffer, taken, at = FrameBuffer(1 << 20), [], 0
    for size in [*cuts, len(stream)]:
        buffer.feed(stream[at : at + size])
        at += size
        while (frame := buffer.take()) is not None:
            taken.append(frame)
    assert taken == frames


def test_the_form_is_two_lengths_a_head_and_a_payload() -> None:
    """The form, byte by byte, as the module's docstring states it."""
    head = b'{"id":7,"op":"count"}'
    assert encode({"id": 7, "op": "count"}, b"xyz") == struct.pack("<II", len(head) + 3, len(head)) + head + b"xyz"


def test_a_frame_over_the_limit_is_refused_at_its_first_bytes() -> None:
    """Eight bytes are enough; nothing is allocated for the rest."""
    buffer = FrameBuffer(1000)
    buffer.feed(struct.pack("<II", 1001, 10))
    with pytest.raises(FrameError, match=r"1001 bytes.*limit 1000"):
        buffer.take()
    buffer = FrameBuffer(1000)
    buffer.feed(encode({"id": 1, "pad": ""}, bytes(1000 - len(orjson.dumps({"id": 1, "pad": ""})))))
    frame = buffer.take()
    assert frame is not None, "a frame of just the limit"
    assert len(frame.payload) + len(orjson.dumps(frame.head)) == 1000


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack("<II", 4, 5) + b"{}{}",
        struct.pack("<II", 2, 2) + b"{}",
        struct.pack("<II", 2, 2) + b"[]",
        struct.pack("<II", 3, 3) + b"{x}",
        struct.pack("<II", 10, 10) + b'{"id":"7"}',
        struct.pack("<II", 11, 11) + b'{"id":true}',
        struct.pack("<II", 0, 0),
    ],
    ids=["head-longer", "no-id", "no-object", "no-json", "id-is-text", "id-is-bool", "empty"],
)
def test_what_is_no_frame_is_refused(stream: bytes) -> None:
    buffer = FrameBuffer(1 << 20)
    buffer.feed(stream)
    with pytest.raises(FrameError):
        buffer.take()


@pytest.mark.parametrize("kind", PROBLEMS.values(), ids=PROBLEMS)
def test_every_problem_crosses_the_border(kind: type) -> None:
    sent = kind("what, and what to do", retry_after_s=2.5, errors=[{"pointer": "/a", "detail": "b"}])
    buffer = FrameBuffer(1 << 20)
    buffer.feed(encode_problem(3, sent))
    frame = buffer.take()
    assert frame is not None
    received = problem_of(frame.head)
    assert received is not None
    assert type(received) is kind
    assert received.to_json() == sent.to_json()
    assert received.retry_after_s == 2.5


def test_a_problem_keeps_its_members() -> None:
    sent = DuplicateRows("rows were counted", rows=[3, 4], count=12, batches=["a"])
    buffer = FrameBuffer(1 << 20)
    buffer.feed(encode_problem(3, sent))
    frame = buffer.take()
    assert frame is not None
    received = problem_of(frame.head)
    assert isinstance(received, DuplicateRows)
    assert (received.rows, received.count, received.batches) == ([3, 4], 12, ["a"])
    assert received.retry_after_s is None


def test_an_outcome_is_no_problem() -> None:
    assert problem_of({"id": 1, "ok": None}) is None
    assert isinstance(problem_of({"id": 1, "problem": Unavailable("x").to_json()}), Unavailable)


def test_a_request_may_carry_a_whole_run_and_a_definition() -> None:
    assert request_bytes(256 << 20) == (256 + 64) << 20
    assert request_bytes(8 << 30) < 1 << 32, "lengths have 32 bits"
