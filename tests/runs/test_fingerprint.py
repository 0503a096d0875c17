"""The fingerprint of targets: equal for equal rows in any order and batches, different for all else."""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossd.compiled.passes import Passes
from lossd.runs.rows import fingerprint
from lossd.runs.rows.fingerprint import BLOCK, Fingerprint, _lanes
from lossd.runs.rows.fingerprint import final as finals
from lossd_client.errors import InvalidRequest

Array = np.ndarray[Any, Any]
WRAP, GOLDEN = 1 << 64, 0x9E3779B97F4A7C15


def fingerprint_of(target: Any, **more: Any) -> str:
    fingerprint = Fingerprint()
    fingerprint.add({"target": np.asarray(target)}, **more)
    return str(fingerprint)


# The definition, in Python's integers, entry by entry


def final(x: int) -> int:
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 % WRAP
    x ^= x >> 27
    x = x * 0x94D049BB133111EB % WRAP
    return x ^ x >> 31


def word(number: Any) -> int:
    number = number.item() if isinstance(number, np.generic) else number
    if isinstance(number, int) and int(float(number)) != number:
        return (final(abs(number)) + (number < 0)) % WRAP
    value = float(number)
    x = 0x7FF8 << 48 if math.isnan(value) else struct.unpack("<Q", struct.pack("<d", value + 0.0))[0]
    x ^= x >> 32
    x = x * GOLDEN % WRAP
    return x ^ x >> 29


def seed(lane: int, name: str, shape: tuple[int, ...]) -> int:
    x = final(lane + 1)
    for number in (len(name.encode()), *name.encode(), len(shape), *shape):
        x = (final(x ^ number) + GOLDEN) % WRAP
    return x


def defined(tensors: dict[str, Array]) -> str:
    """The fingerprint of rows whose tensors are all named, weights and identity too."""
    total = 0
    for row in range(len(next(iter(tensors.values())))):
        sums = [0, 0]
        for name, tensor in tensors.items():
            for lane in range(2):
                begin = seed(lane, name, tensor.shape[1:])
                sums[lane] += begin
                for j, entry in enumerate(tensor[row].reshape(-1)):
                    sums[lane] += word(entry) * (final((begin + (j + 1) * GOLDEN) % WRAP) | 1)
        total += (final(sums[1] % WRAP) << 64) + final(sums[0] % WRAP)
    return f"t1:{total % (1 << 128):032x}"


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3), st.sampled_from([2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1])
)
TENSORS = st.one_of(
    st.lists(NUMBERS, min_size=6, max_size=6).map(lambda numbers: np.array(numbers, np.int64)),
    st.lists(st.floats(width=64), min_size=6, max_size=6).map(np.array),
    st.lists(st.floats(width=16), min_size=6, max_size=6).map(lambda numbers: np.array(numbers, np.float16)),
    st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6).map(lambda numbers: np.array(numbers, np.uint64)),
    st.lists(st.integers(-128, 127), min_size=6, max_size=6).map(lambda numbers: np.array(numbers, np.int8)),
    st.lists(st.booleans(), min_size=6, max_size=6).map(np.array),
)


@given(TENSORS, st.sampled_from([(6,), (3, 2), (2, 3), (6, 1), (2, 3, 1), (1, 6)]), st.integers(0, 2**62))
def test_it_is_what_its_definition_says(target: Array, shape: tuple[int, ...], first: int) -> None:
    target = target.reshape(shape)
    rows = len(target)
    ones, weights = np.ones(rows), np.linspace(0, 2, rows)
    positions = np.arange(first, first + rows)
    assert fingerprint_of(target) == defined({"target": target, "sample_weight": ones})
    assert fingerprint_of(target, first=first) == defined({"target": target, "sample_weight": ones, "": positions})
    assert fingerprint_of(target, sample_id=positions, sample_weight=weights) == defined(
        {"target": target, "sample_weight": weights, "": positions}
    )


def test_a_published_value_never_changes() -> None:
    """Fingerprints are published, so a change of the hash needs another version."""
    assert str(Fingerprint()) == "t1:" + 32 * "0"
    target = np.array([3, 0, 2])
    # Computed by the definition above alone.
    assert fingerprint_of(target, first=0) == "t1:198c663ad843da3bc486cbcec846bcf7"


# Equal


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_order_batches_and_merges_change_nothing(labels: list[int], chance: Any) -> None:
    target, weights = np.array(labels), np.arange(len(labels)) / 7
    rows = list(range(len(labels)))
    chance.shuffle(rows)
    parts = [Fingerprint() for _ in range(3)]
    while rows:
        taken = [rows.pop() for _ in range(chance.randint(1, len(rows)))]
        chance.choice(parts).add({"target": target[taken]}, sample_weight=weights[taken], sample_id=np.array(taken))
    parts[2].merge(parts[0])
    parts[1].merge(parts[2])
    assert str(parts[1]) == fingerprint_of(target, sample_weight=weights, first=0)
    assert parts[1] == Fingerprint.decode(parts[1].encode()) == Fingerprint.parse(str(parts[1]))


@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_blocks_do_not_show(rows: int) -> None:
    target = np.arange(rows) % 7
    split = Fingerprint()
    for begin in range(0, rows, 10_007):
        split.add({"target": target[begin : begin + 10_007]}, first=begin)
    assert str(split) == fingerprint_of(target, first=0)


def test_rows_longer_than_a_block_do_not_show() -> None:
    """Columns are hashed in blocks too: the row's value is the same linear sum."""
    target = np.arange(2 * (BLOCK + 3)).reshape(2, -1) % 11
    assert fingerprint_of(target) == fingerprint_of(np.asfortranarray(target))
    changed = target.copy()
    changed[1, [0, BLOCK + 2]] = changed[1, [BLOCK + 2, 0]]
    assert target[1, 0] != target[1, BLOCK + 2]
    assert fingerprint_of(changed) != fingerprint_of(target)


def test_the_width_of_numbers_does_not_show() -> None:
    labels = np.array([[0, 1, 3], [100, 2, 0]])
    widths = [labels.astype(dtype) for dtype in "bBhHiIqQefd"]
    assert len({fingerprint_of(target) for target in widths}) == 1
    assert fingerprint_of(labels % 2) == fingerprint_of((labels % 2).astype(bool))
    assert fingerprint_of(labels) == fingerprint_of(labels.astype(">i4"))
    half = np.array([0.5, 65504, 2**-24, np.inf, np.nan], np.float16)
    assert fingerprint_of(half) == fingerprint_of(half.astype(np.float32)) == fingerprint_of(half.astype(np.float64))
    large = np.array([2**63 - 1, 2**53 + 1])
    assert fingerprint_of(large) == fingerprint_of(large.astype(np.uint64))
    assert fingerprint_of([2**60]) == fingerprint_of([2.0**60])


def test_signs_of_zero_and_kinds_of_nan_do_not_show() -> None:
    assert fingerprint_of([-0.0, 1.0]) == fingerprint_of([0.0, 1.0])
    other = np.array([0xFFF8000000000001], np.uint64).view(np.float64)
    assert fingerprint_of(other) == fingerprint_of([np.nan]) != fingerprint_of([np.inf])


def test_no_weights_are_weights_of_one() -> None:
    assert fingerprint_of([1, 2, 3]) == fingerprint_of([1, 2, 3], sample_weight=np.ones(3, np.float32))


def test_a_position_is_an_id() -> None:
    assert fingerprint_of([4, 5, 6], first=10) == fingerprint_of([6, 5, 4], sample_id=np.array([12, 11, 10], np.uint16))


# Different


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30), st.data())
def test_any_change_shows(labels: list[int], data: Any) -> None:
    target, rows = np.array(labels), len(labels)
    weights = np.ones(rows)
    at, other = data.draw(st.permutations(range(rows)))[:2]
    values = [fingerprint_of(target, first=0, sample_weight=weights)]
    changed = target.copy()
    changed[at] += 1
    values.append(fingerprint_of(changed, first=0, sample_weight=weights))
    heavier = weights.copy()
    heavier[at] = np.nextafter(1, 2)
    values.append(fingerprint_of(target, first=0, sample_weight=heavier))
    if target[at] != target[other]:
        swapped = target.copy()
        swapped[[at, other]] = swapped[[other, at]]
        values.append(fingerprint_of(swapped, first=0, sample_weight=weights))
        assert fingerprint_of(swapped) == fingerprint_of(target)  # without an identity, the multiset counts
    values += [
        fingerprint_of(target, first=1),
        fingerprint_of(target[1:], first=1),
        fingerprint_of(target),
        fingerprint_of(np.append(target, target[0]), first=0),
    ]
    values += [fingerprint_of(target[:, None], first=0), fingerprint_of(target[None], first=0)]
    assert len({*values}) == len(values)


def test_names_tell_labels_apart() -> None:
    def named(**labels: list[int]) -> str:
        fingerprint = Fingerprint()
        fingerprint.add({name: np.array(entries) for name, entries in labels.items()})
        return str(fingerprint)

    values = [named(first=[1], second=[2]), named(first=[2], second=[1]), named(first=[1]), named(second=[1])]
    assert len({*values}) == 4
    assert named(second=[2], first=[1]) == values[0]


def hashes(rows: Array) -> Array:
    """The two halves of every row's hash, (2, N)."""
    return finals(_lanes({"target": rows}, len(rows)))


def test_small_rows_do_not_collide_in_either_half() -> None:
    """All rows of two, four and eight small numbers: neither half of 64 bits alone has one value twice."""
    tables = [
        np.array(list(itertools.product(range(256), repeat=2)), np.int64),
        np.array(list(itertools.product(range(-8, 8), repeat=4)), np.int64),
        np.array(list(itertools.product(range(4), repeat=8)), np.int64) / 4,
        np.eye(1000, dtype=np.int64),
    ]
    seen = np.concatenate([hashes(rows) for rows in tables], axis=1)
    for half in seen:
        assert len(np.unique(half)) == len(half)


def test_small_data_sets_do_not_collide() -> None:
    """All labellings of three rows by 0 to 15, with positions: sums of hashes, of which none is twice."""
    parts = [[hashes_of(label, position) for label in range(16)] for position in range(3)]
    sums = {sum(choice) % (1 << 128) for choice in itertools.product(*parts)}
    assert len(sums) == 16**3


def hashes_of(label: int, position: int) -> int:
    fingerprint = Fingerprint()
    fingerprint.add({"target": np.array([label])}, first=position)
    return fingerprint.value


def test_bits_of_the_hash_are_even() -> None:
    """Each bit is set in half of the rows' hashes, within six standard deviations."""
    halves = hashes(np.arange(1 << 14))
    for half in halves:
        counts = np.unpackbits(half.view(np.uint8).reshape(-1, 8), axis=1).sum(0, dtype=np.int64)
        assert np.abs(counts - (1 << 13)).max() < 6 * 64


# Misuse


@pytest.mark.parametrize("text", ["", "t1:", "t2:" + 32 * "0", "t1:" + 31 * "0", "t1:" + 32 * "g", 32 * "0"])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="it is t1: and 32 hexadecimal digits"):
        Fingerprint.parse(text)


def test_16_bytes_are_a_fingerprint() -> None:
    assert Fingerprint.decode(bytes([1, *15 * [0]])).value == 1
    with pytest.raises(InvalidRequest, match="15 bytes"):
        Fingerprint.decode(bytes(15))


def test_lengths_agree() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        fingerprint_of([1, 2, 3], sample_weight=np.ones(2))
    with pytest.raises(TypeError, match="complex128"):
        fingerprint_of([1j])


def test_no_rows_change_nothing() -> None:
    assert fingerprint_of(np.empty((0, 5))) == str(Fingerprint())
    assert fingerprint_of(np.empty((2, 0)), first=0) not in (
        str(Fingerprint()),
        fingerprint_of(np.empty((2, 0)), first=1),
    )


def test_kernels_hash_wide_rows_in_pieces_as_numpy_does(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "COLUMNS", 4)
    monkeypatch.setattr(fingerprint, "BLOCK", 20)
    target = np.random.default_rng(0).normal(size=(9, 2, 5))
    [found] = Fingerprint.each([9], {"target": target}, firsts=[3], kernels=passes.counting)
    assert str(found) == fingerprint_of(target, first=3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (1,)])
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_batches_together_have_the_fingerprints_of_each(
    dtype: str, shape: tuple[int, ...], passes: Passes, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, rng.integers(1, 6)).tolist()
    n = sum(lengths)
    label = rng.choice([0, 1, 2, -1, 2**53 + 1, 0.5, np.nan, -0.0], (n, *shape)) if dtype == "float64" else None
    labels = {"target": rng.integers(0, 3, (n, *shape)).astype(dtype) if label is None else label}
    weight = rng.random(n) if rng.random() < 0.5 else None
    ids = rng.integers(-(2**62), 2**62, n) if rng.random() < 0.5 else None
    firsts = rng.integers(0, 99, len(lengths)).tolist() if ids is None and rng.random() < 0.7 else None
    if dtype == "int64" and rng.random() < 0.3:
        labels["target"].flat[0] = rng.choice([2**53, 2**53 + 1, -(2**63)])
    found = Fingerprint.each(lengths, labels, sample_weight=weight, firsts=firsts, sample_id=ids)
    assert found == Fingerprint.each(
        lengths, labels, sample_weight=weight, firsts=firsts, sample_id=ids, kernels=passes.counting
    )
    stop = 0
    for number, length in enumerate(lengths):
        rows = slice(stop, stop := stop + length)
        alone = Fingerprint()
        alone.add(
            {"target": labels["target"][rows]},
            sample_weight=None if weight is None else weight[rows],
            first=None if firsts is None else firsts[number],
            sample_id=None if ids is None else ids[rows],
        )
        assert found[number] == alone
