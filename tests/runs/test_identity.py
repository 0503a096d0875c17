"""Which rows were counted: each once, whatever the order, the batches and the merges."""

from __future__ import annotations

import random
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossd.runs.rows.content import content_digest
from lossd.runs.rows.identity import Batches, Ids, Positions, decode, new
from lossd.runs.rows.identity import merged as merged_bytes
from lossd_client.errors import BatchConflict, DuplicateRows, InvalidRequest, Problem, TooLarge
from lossd_client.wire import Tensor

DIGESTS = [bytes([number]) * 32 for number in range(4)]
NEAR = st.integers(-200, 400)
ANY = st.integers(-(2**63), 2**63 - 1)
IDS = st.sets(st.one_of(NEAR, ANY), max_size=80)


def ids(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def shares(rows: list[Any], seed: int) -> list[list[Any]]:
    """The rows, shuffled, in 1 to 6 batches of any length, empty ones too."""
    chance = random.Random(seed)
    batches: list[list[Any]] = [[] for _ in range(chance.randint(1, 6))]
    for row in chance.sample(rows, len(rows)):
        chance.choice(batches).append(row)
    return batches


def merged(parts: list[Any], seed: int) -> Any:
    """The parts, merged pair by pair in any order."""
    chance = random.Random(seed)
    while len(parts) > 1:
        chance.shuffle(parts)
        parts[-1].merge(parts.pop(0))
    return parts[0]


# Ids and positions: a Python set is the oracle


@given(IDS, st.integers(0, 1000))
def test_ids_in_any_batches_and_merges_have_the_same_bytes(rows: set[int], seed: int) -> None:
    whole, in_order, parts = Ids(), Ids(), []
    whole.add(ids(*rows))
    for batch in shares(sorted(rows), seed):
        in_order.add(ids(*batch))
        parts.append(Ids())
        parts[-1].add(ids(*batch))
    together = merged(parts, seed)
    assert whole.encode() == in_order.encode() == together.encode() == decode(whole.encode()).encode()
    assert whole.rows == in_order.rows == together.rows == decode(whole.encode()).rows == len(rows)


@given(IDS, IDS)
def test_ids_that_were_counted_are_named_and_nothing_changes(first: set[int], second: set[int]) -> None:
    other = Ids()
    other.add(ids(*second))
    twice = sorted(first & second)
    for attempt in (
        lambda run: run.check(ids(*second)),
        lambda run: run.add(ids(*second)),
        lambda run: run.merge(other),
    ):
        counted = Ids()
        counted.add(ids(*first))
        before = counted.encode()
        if not twice:
            attempt(counted)
            continue
        with pytest.raises(DuplicateRows) as caught:
            attempt(counted)
        assert (caught.value.rows, caught.value.count) == (twice, len(twice))
        assert (counted.encode(), counted.rows) == (before, len(first))


@given(st.dictionaries(st.integers(0, 300), st.integers(0, 30), max_size=30), st.integers(0, 1000))
def test_positions_count_like_a_set(batches: dict[int, int], seed: int) -> None:
    counted, oracle = Positions(), set[int]()
    for first, count in random.Random(seed).sample(sorted(batches.items()), len(batches)):
        rows, before = set(range(first, first + count)), counted.encode()
        if twice := sorted(rows & oracle):
            with pytest.raises(DuplicateRows) as caught:
                counted.add(first, count)
            assert (caught.value.rows, caught.value.count) == (twice, len(twice))
            assert counted.encode() == before
        else:
            assert counted.add(first, count) == count
            oracle |= rows
        assert counted.rows == len(oracle)
    assert {row for gap in counted.missing() for row in gap} == set(range(max(oracle, default=-1))) - oracle
    assert {row for gap in counted.missing(350) for row in gap} == set(range(350)) - oracle
    alone = Positions()
    for row in oracle:
        alone.add(row, 1)
    assert alone.encode() == counted.encode() == decode(counted.encode()).encode()


@given(st.sets(st.integers(0, 100)), st.sets(st.integers(0, 100)))
def test_positions_merge_like_sets(first: set[int], second: set[int]) -> None:
    one, other, union = Positions(), Positions(), Positions()
    for counted, rows in ((one, first), (other, second), (union, first | second)):
        for row in rows:
            counted.add(row, 1)
    before = one.encode()
    if twice := sorted(first & second):
        with pytest.raises(DuplicateRows) as caught:
            one.merge(other)
        assert (caught.value.rows, caught.value.count) == (twice, len(twice))
        assert one.encode() == before
    else:
        one.merge(other)
        assert (one.encode(), one.rows) == (union.encode(), union.rows)


@given(batches=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=8))
def test_batches_that_are_read_together_are_those_that_are_merged_one_by_one(batches: list[tuple[int, int]]) -> None:
    parts = []
    for first, count in batches:
        parts.append(Positions())
        parts[-1].add(first, count)
    rows = [row for first, count in batches for row in range(first, first + count)]
    if len(rows) > len(set(rows)):
        with pytest.raises(DuplicateRows):
            merged_bytes([part.encode() for part in parts])
        return
    found = merged_bytes([part.encode() for part in parts])
    assert (found.encode(), found.rows) == (merged(parts, 0).encode(), len(rows))


def test_a_row_twice_in_one_batch_is_named() -> None:
    counted = Ids()
    with pytest.raises(DuplicateRows, match=r"the batch holds these rows twice: -7, 3; send each row once") as caught:
        counted.add(ids(3, 5, -7, 3, -7, 3))
    assert caught.value.errors == [{"pointer": "/inputs/sample_id", "detail": caught.value.detail}]
    assert counted.rows == 0
    with pytest.raises(DuplicateRows, match=r"0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\. \(30 in all\)"):
        counted.add(np.repeat(np.arange(30), 2))


def test_messages_say_who_counted() -> None:
    one, other = Positions(), Positions()
    one.add(0, 20)
    other.add(18, 2)
    with pytest.raises(
        DuplicateRows, match=r"^the run has counted these rows before: 15, 16, 17, 18, 19; send only"
    ) as e:
        one.add(15, 30)
    assert e.value.errors[0]["pointer"] == "/first"
    with pytest.raises(
        DuplicateRows, match=r"^both runs counted these rows: 18, 19; merge runs of different rows$"
    ) as e:
        one.merge(other)
    assert e.value.errors == []
    assert e.value.status == 409


@given(IDS.map(lambda rows: {abs(row) % 700 for row in rows}), st.integers(700, 800))
def test_missing_ids_are_the_gaps(rows: set[int], expected: int) -> None:
    counted = Ids()
    counted.add(ids(*rows))
    gaps = counted.missing(expected)
    assert [row for gap in gaps for row in gap] == sorted(set(range(expected)) - rows)
    assert all(before.stop < after.start for before, after in pairwise(gaps))
    assert counted.missing(expected, limit=2) == gaps[:2]


def test_missing_ids_of_many_words() -> None:
    """More ids than one block of words; the holes stand at borders of words and blocks, and inside."""
    holes = [0, 63, 64, 4096 * 64 - 1, 4096 * 64, 4096 * 64 * 2 + 5, 699_999]
    counted = Ids()
    counted.add(np.delete(np.arange(700_000), holes))
    assert [row for gap in counted.missing(700_000) for row in gap] == holes
    assert counted.missing() == []


@pytest.mark.parametrize("outside", [-1, 10])
def test_ids_that_are_no_row_numbers_leave_no_gaps(outside: int) -> None:
    counted = Ids()
    counted.add(ids(3, outside))
    assert counted.missing(10) == []


def test_long_position_gaps_are_limited() -> None:
    counted = Positions()
    for first in range(1, 4001, 2):
        counted.add(first, 1)
    assert counted.missing() == [range(row, row + 1) for row in range(0, 2000, 2)]
    assert counted.missing(limit=1) == [range(1)]
    assert counted.stop == 4000


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64, np.int64])
def test_ids_of_any_integer_type(dtype: Any) -> None:
    counted = Ids()
    counted.add(np.array([3, 1, 2], dtype))
    assert counted.encode() == struct.pack("<2sqQ", b"I1", 0, 0b1110)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.array([2**63], np.uint64), "9223372036854775808 is beyond int64"),
        (np.array([1.0]), "float64 of shape"),
        (np.array([True]), "bool of shape"),
        (np.array([[1]]), r"shape \(1, 1\)"),
        (np.array(1), r"shape \(\)"),
    ],
)
def test_what_is_no_id_is_refused(rows: np.ndarray[Any, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        Ids().add(rows)


@pytest.mark.parametrize(("first", "count"), [(-1, 3), (2**63 - 2, 2), (0, -1)])
def test_what_is_no_position_is_refused(first: int, count: int) -> None:
    with pytest.raises(InvalidRequest, match=r"positions are 0 to 2\^63"):
        Positions().add(first, count)


# Memory


def test_dense_ids_take_a_quarter_of_a_byte_each_in_any_order() -> None:
    counted = Ids()
    rows = np.random.default_rng(0).permutation(1 << 18)
    for begin in range(0, len(rows), 5000):
        counted.add(rows[begin : begin + 5000])
        held = [len(keys) for keys, _ in counted._segments]
        assert all(long >= 2 * short for long, short in pairwise(held))
    assert sum(held) == len(rows) // 64
    assert len(counted.encode()) == 2 + len(rows) // 4
    assert counted.missing(len(rows)) == []


def test_identities_are_bounded() -> None:
    scattered = np.arange(64) * 1000
    sparse = Ids(max_bytes=64 * 16)
    sparse.add(scattered)
    before = sparse.encode()
    sparse.add(scattered + 1)  # the same words
    with pytest.raises(TooLarge, match="65 words of ids need more than 1024 bytes"):
        sparse.add(ids(-1))
    with pytest.raises(TooLarge):
        sparse.check(ids(-1))
    positions = Positions(max_bytes=32)
    positions.add(0, 1)
    positions.add(5, 1)
    positions.add(1, 1)  # grows a range
    with pytest.raises(TooLarge, match="3 ranges of rows need more than 32 bytes"):
        positions.add(10, 1)
    positions.add(2, 3)  # joins two
    positions.add(10, 1)
    batches = Batches(max_bytes=41)
    batches.add(3, "a", DIGESTS[0])
    with pytest.raises(TooLarge, match="send larger batches"):
        batches.add(3, "b", DIGESTS[0])
    for whole, size in ((before, 63 * 16), (positions.encode(), 16), (batches.encode(), 40)):
        with pytest.raises(TooLarge):
            decode(whole, max_bytes=size)
        with pytest.raises(TooLarge):
            new({b"I": "id", b"P": "position", b"B": "batch"}[whole[:1]], max_bytes=size).merge(decode(whole))  # type: ignore[arg-type]


# Batches


@given(st.permutations(["a", "b", "é", "zz"]), st.integers(0, 1000))
def test_named_batches_in_any_order_have_the_same_bytes(names: list[str], seed: int) -> None:
    whole, parts = Batches(), []
    for name in sorted(names):
        whole.add(len(name), name, DIGESTS[len(name)])
    whole.add(5)
    for batch in shares(names, seed):
        parts.append(Batches())
        for name in batch:
            parts[-1].add(len(name), name, DIGESTS[len(name)])
    parts[0].add(2)
    parts[-1].add(3)
    together = merged(parts, seed)
    assert together.encode() == whole.encode() == decode(whole.encode()).encode()
    assert together.rows == whole.rows == 10


def test_a_batch_again_counts_nothing_and_other_content_is_refused() -> None:
    counted = Batches()
    assert counted.add(7, "00010", DIGESTS[0]) == 7
    assert counted.check(7, "00010", DIGESTS[0]) == counted.add(7, "00010", DIGESTS[0]) == 0
    before = counted.encode()
    with pytest.raises(BatchConflict, match=f"'00010'.*{DIGESTS[0].hex()}.*{DIGESTS[1].hex()}"):
        counted.add(7, "00010", DIGESTS[1])
    assert (counted.encode(), counted.rows) == (before, 7)
    other = Batches()
    other.add(7, "00010", DIGESTS[0])
    with pytest.raises(DuplicateRows, match="both runs counted these batches: '00010'") as caught:
        counted.merge(other)
    assert caught.value.rows == ["00010"]
    assert counted.encode() == before
    assert counted.missing(100) == []


@pytest.mark.parametrize("name", ["", "x" * 1025, "é" * 513])
def test_a_name_has_a_length(name: str) -> None:
    with pytest.raises(InvalidRequest, match="it may have 1 to 1024"):
        Batches().add(1, name, DIGESTS[0])


def test_batches_without_names_are_not_told_apart() -> None:
    counted, other = Batches(), Batches()
    counted.add(3)
    counted.add(3)
    other.add(6)
    assert counted.encode() == other.encode()
    counted.merge(other)
    assert counted.rows == 12


# Untrusted bytes


def test_there_are_three_kinds() -> None:
    for kind in ("position", "id", "batch"):
        assert new(kind).kind == decode(new(kind).encode()).kind == kind
    with pytest.raises(InvalidRequest, match="'row'; it is one of position, id, batch"):
        new("row")


def packed(magic: bytes, *numbers: int) -> bytes:
    return magic + b"".join(number.to_bytes(8, "little", signed=number < 0) for number in numbers)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"X1",
        b"P1" + bytes(15),
        packed(b"P1", 0, 0),  # an empty range
        packed(b"P1", -1, 2),
        packed(b"P1", 2**63 - 1, 2),  # beyond 64 bits
        packed(b"P1", 0, 4, 4, 1),  # ranges that touch
        packed(b"P1", 0, 3, 4, 1),  # that overlap
        packed(b"P1", 5, 0, 1, 1),  # out of order
        packed(b"I1", 0, 0),  # an empty word
        packed(b"I1", 5, 0, 1, 1),  # the same word twice
        packed(b"I1", 5, -2, 1, 1),  # out of order
        packed(b"I1", 2**57, 1),  # beyond int64
        packed(b"I1", -(2**57) - 1, 1),
        packed(b"I1", 2**57 - 1, 2**63 - 1, 1, 1),  # its sum overflows
        b"B1",
        packed(b"B1", -1),
        packed(b"B1", 0) + b"\1\0a" + DIGESTS[0] + bytes(7),
        packed(b"B1", 0) + b"\1\0\xff" + DIGESTS[0] + bytes(8),
        packed(b"B1", 0) + b"\0\0" + DIGESTS[0] + bytes(8),
        packed(b"B1", 0) + 2 * (b"\1\0a" + DIGESTS[0] + bytes(8)),
        packed(b"B1", 0) + b"\1\0a" + DIGESTS[0] + b"\xff" * 8,
        packed(b"B1", 0) + b"\xff\xffa",
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the record of the counted rows is damaged"):
        decode(data)


@settings(max_examples=300)
@given(
    st.sampled_from([b"P1", b"I1", b"B1"]),
    st.lists(st.one_of(st.binary(max_size=9), NEAR.map(lambda n: struct.pack("<q", n)))),
)
def test_what_decodes_is_canonical(magic: bytes, pieces: list[bytes]) -> None:
    data = magic + b"".join(pieces)
    try:
        found = decode(data)
    except Problem:
        return
    assert found.encode() == data


# Content


def test_the_digest_covers_all_that_a_batch_says() -> None:
    def digest(fields: dict[str, Any] | None = None, **inputs: np.ndarray[Any, Any]) -> bytes:
        return content_digest({name: Tensor.of(array) for name, array in inputs.items()}, fields)

    array = np.arange(6, dtype=np.int32)
    digests = [
        digest(prediction=array),
        digest(target=array),
        digest(prediction=array.reshape(2, 3)),
        digest(prediction=array.view(np.uint32)),
        digest(prediction=array + 1),
        digest({"first": 1}, prediction=array),
        digest({"first": 2}, prediction=array),
        digest(a=array[:2], b=array[2:]),
        digest(a=array[:3], b=array[3:]),
    ]
    assert len({*digests}) == len(digests)
    assert {len(value) for value in digests} == {32}
    both = {"b": Tensor.of(array), "a": Tensor.of(array)}
    assert content_digest(both, {"y": 1, "x": 2}) == content_digest(dict(sorted(both.items())), {"x": 2, "y": 1})


def test_the_digest_of_each_hash_stays_as_it_is() -> None:
    """Batches that were counted before are known by it."""
    inputs = {"prediction": Tensor.of(np.arange(3, dtype=np.float32)), "target": Tensor.of(np.array([0, 1, 2]))}
    assert (
        content_digest(inputs, {"first": 8}).hex() == "6dfb72dad0fd08f0e76a872ca610f01e485927bad31781f52a4d95c452232bdf"
    )
    assert (
        content_digest(inputs, {"first": 8}, "blake3").hex()
        == "f6707cd891d8b046af3d0749f4c1cc30deea0eab425852185bb7c98bacb56711"
    )


# A batch as an identity of its own


@pytest.mark.parametrize("kind", ["position", "id"])
def test_a_batch_of_an_identity_of_its_own_counts_as_by_check_and_add(kind: str) -> None:
    counted, by_rows = new(kind), new(kind)
    for first, count in [(40, 8), (0, 8), (8, 32), (100, 0), (60, 1)]:
        rows = new(kind)
        for into in (rows, by_rows):
            into.add(*((first, count) if kind == "position" else (ids(*range(first, first + count)),)))  # type: ignore[arg-type,call-arg]
        assert rows.bounds == ((first, first + count - 1) if count else None)
        counted.extend(rows)  # type: ignore[arg-type]
    assert counted.encode() == by_rows.encode()
    assert (counted.rows, counted.bounds) == (49, (0, 60))
    before = counted.encode()
    twice = new(kind)
    twice.add(*((47, 2) if kind == "position" else (ids(47, 48),)))  # type: ignore[arg-type,call-arg]
    with pytest.raises(DuplicateRows, match="the run has counted these rows before: 47; send only rows") as caught:
        counted.extend(twice)  # type: ignore[arg-type]
    assert caught.value.rows == [47]
    assert counted.encode() == before


@given(IDS, IDS)
def test_bounds_and_members_of_ids(rows: set[int], candidates: set[int]) -> None:
    counted = Ids()
    for row in rows:
        counted.add(ids(row))
    assert counted.bounds == ((min(rows), max(rows)) if rows else None)
    assert counted.nbytes == 16 * len({row >> 6 for row in rows})
    assert counted.holds(ids(*candidates)) == bool(rows & candidates)


def test_the_bytes_that_an_identity_takes() -> None:
    positions = Positions()
    for first in range(0, 100, 10):
        positions.add(first, 5)
    assert positions.nbytes == 160
    for first in range(5, 100, 10):
        positions.add(first, 5)
    assert positions.nbytes == 16
    assert Batches().nbytes == 0
