"""The fingerprint of a run's targets: 128 bits that depend on the rows and their labels, not on order or batches.

Two runs with the same fingerprint were judged on the same rows, with the same labels, masks and weights. It guards
against mistakes; an adversary can make two data sets with one fingerprint.

Version ``t1`` is defined as follows, in unsigned integers of 64 bits that wrap around.

* ``final(x)`` is the finaliser of splitmix64: x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27;
  x *= 0x94D049BB133111EB; x ^= x >> 31.
* ``mix(x)`` is a shorter one: x ^= x >> 32; x *= 0x9E3779B97F4A7C15; x ^= x >> 29.
* ``word(v)`` of a number is ``mix`` of its bits as float64, where -0 is 0 and every NaN is 0x7FF8000000000000. An
  integer that float64 cannot represent has the word ``final(abs(v))``, plus 1 if it is negative. True is 1, False is
  0. Numbers of equal value have equal words, whatever their dtype.
* A row is a set of named tensors: its labels; its ``mask``, ``element_weight`` and ``lengths``, if they are sent;
  ``sample_weight`` of shape (), 1 without weights; and its identity under the empty name, of shape (), if the run
  identifies rows by position or by id.
* ``seed(lane, name, shape)`` starts as ``final(lane + 1)``. It becomes ``final(seed ^ b) + G`` for each number b: the
  length of the name in UTF-8, its bytes, the number of axes, their lengths; G = 0x9E3779B97F4A7C15.
* The tensor's value in a lane is seed + Σ_j word(v_j) · (final(seed + (j + 1) · G) | 1), over its entries in C order.
* The row's hash is final(Σ lane 1) · 2^64 + final(Σ lane 0), sums over its tensors.
* The fingerprint is the sum of the rows' hashes modulo 2^128, written as ``t1:`` and 32 hexadecimal digits.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lossd.caches import memoized
from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = ["GOLDEN", "Fingerprint", "final", "starts_of"]

Array = np.ndarray[Any, Any]

VERSION = "t1"
NBYTES = 16
LANES = 2
BLOCK, COLUMNS = 1 << 15, 1 << 12
"""Entries that are hashed together, and those of one row: their temporaries stay in the processor's cache."""

FEW_ROWS = 1 << 12
"""Up to so many rows of single numbers are hashed for all tensors and lanes together, which takes half the calls."""

_WRAP = 1 << 64
GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_NAN = np.uint64(0x7FF8000000000000)
_LOW = np.uint64((1 << 32) - 1)
_EXACT = 1 << 53
IDENTITY, WEIGHT = "", "sample_weight"
_NONE, _NO_FLOATS = np.zeros(0, np.int64), np.zeros(0, np.float32)


class Fingerprint:
    """The sum of the hashes of the rows so far.

    Args:
        value: The sum, 0 without rows.
    """

    def __init__(self, value: int = 0) -> None:
        self.value = value % (1 << 128)

    def add(
        self,
        labels: Mapping[str, Array],
        *,
        sample_weight: Array | None = None,
        first: int | None = None,
        sample_id: Array | None = None,
    ) -> None:
        """Add a batch of N rows.

        Args:
            labels: The tensors that hold the labels, by name, such as ``target``: (N, ...) of bool, integers or floats.
            sample_weight: (N,), or None for weights of 1.
            first: The position of the first row, if rows are identified by position.
            sample_id: (N,) integers, if rows are identified by id. The same numbers as positions and as ids give the
                same fingerprint. Without either, the fingerprint is that of the multiset of labels: it does not see
                that two rows changed places.
        """
        tensors = {**labels, **({} if sample_weight is None else {WEIGHT: sample_weight})}
        lengths = {len(tensor) for tensor in tensors.values()} | ({len(sample_id)} if sample_id is not None else set())
        if len(lengths) != 1:
            raise ValueError(f"labels, weights and ids have the lengths {sorted(lengths)}; there is one of each a row")
        rows = lengths.pop()
        step = _step(tensors.values())
        low = high = 0
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            block = {name: tensor[begin:end] for name, tensor in tensors.items()}
            if first is not None:
                block[IDENTITY] = np.arange(first + begin, first + end)
            elif sample_id is not None:
                block[IDENTITY] = sample_id[begin:end]
            hashes = final(_lanes(block, end - begin))
            lower, upper = hashes[0] & _LOW, hashes[0] >> np.uint64(32)
            low += int(lower.sum()) + (int(upper.sum()) << 32)  # the carry into the high half counts
            high += int(hashes[1].sum())
        self.value = (self.value + (high << 64) + low) % (1 << 128)

    @classmethod
    def each(
        cls,
        lengths: Sequence[int],
        labels: Mapping[str, Array],
        *,
        sample_weight: Array | None = None,
        firsts: Sequence[int] | None = None,
        sample_id: Array | None = None,
        kernels: CountingKernels = NO_KERNELS,
    ) -> list[Fingerprint]:
        """Return the fingerprint of each of several batches, whose rows lie one after the other.

        Args:
            lengths: The rows of each batch, at least 1.
            labels: As for :meth:`add`, of all rows.
            sample_weight: As for :meth:`add`, of all rows.
            firsts: The position of the first row of each batch, if rows are identified by position.
            sample_id: As for :meth:`add`, of all rows.
            kernels: The compiled functions, by name; those at hand.
        """
        starts = starts_of(lengths)
        tensors = {**labels, **({} if sample_weight is None else {WEIGHT: sample_weight})}
        if firsts is None and sample_id is not None:
            tensors[IDENTITY] = sample_id
        if (found := _by_kernels(tensors, starts, firsts, kernels)) is not None:
            return [cls((high << 64) + low) for low, high in found]
        if firsts is not None:
            spans = zip(firsts, lengths, strict=True)
            tensors[IDENTITY] = np.concatenate([np.arange(first, first + length) for first, length in spans])
        rows = int(starts[-1])
        hashes, step = np.empty((LANES, rows), np.uint64), _step(tensors.values())
        for begin in range(0, rows, step):
            block = {name: tensor[begin : begin + step] for name, tensor in tensors.items()}
            hashes[:, begin : begin + step] = final(_lanes(block, min(step, rows - begin)))
        halves = np.add.reduceat(hashes[0].view(np.uint32).reshape(-1, 2), starts[:-1], 0, np.uint64).tolist()
        high = np.add.reduceat(hashes[1], starts[:-1]).tolist()
        return [cls((upper << 64) + low + (middle << 32)) for (low, middle), upper in zip(halves, high, strict=True)]

    def merge(self, other: Fingerprint) -> None:
        """Add the rows of another run."""
        self.value = (self.value + other.value) % (1 << 128)

    def encode(self) -> bytes:
        """Return the 16 bytes of the value, the lowest first."""
        return self.value.to_bytes(NBYTES, "little")

    @classmethod
    def decode(cls, data: bytes) -> Fingerprint:
        """Return the fingerprint of its 16 bytes.

        Raises:
            InvalidRequest: There are not 16.
        """
        if len(data) != NBYTES:
            raise InvalidRequest(f"the fingerprint of the targets has {len(data)} bytes, not {NBYTES}")
        return cls(int.from_bytes(data, "little"))

    @classmethod
    def merged(cls, many: Sequence[bytes]) -> Fingerprint:
        """Return the fingerprint of the rows of several; errors are those of :meth:`decode`."""
        return cls(sum([cls.decode(data).value for data in many]))

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Return the fingerprint of its text.

        Raises:
            InvalidRequest: It is not ``t1:`` and 32 hexadecimal digits.
        """
        if not re.fullmatch(f"{VERSION}:[0-9a-f]{{32}}", text):
            detail = f"targets is {quoted(text)}; it is {VERSION}: and 32 hexadecimal digits, as a result states it"
            raise InvalidRequest(detail, errors=[Fault(pointer="/targets", detail=detail)])
        return cls(int(text.partition(":")[2], 16))

    def __str__(self) -> str:
        return f"{VERSION}:{self.value:032x}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def starts_of(lengths: Sequence[int]) -> Array:
    """Return the first row of each batch, and the number of all rows: (B + 1,) int64."""
    return np.array([0, *itertools.accumulate(lengths)])


def _by_kernels(
    tensors: Mapping[str, Array], starts: Array, firsts: Sequence[int] | None, kernels: CountingKernels
) -> list[list[int]] | None:
    """Return the halves of each batch's fingerprint, the low one first.

    None if a kernel is not at hand, or if float64 does not represent an integer.

    Args:
        tensors: The tensors of the rows, but for their positions.
        starts: The first row of each batch, and the number of all rows.
        firsts: The position of the first row of each batch, if rows are identified by position.
        kernels: The compiled functions, by name; those at hand.
    """
    add_words, sum_hashes = kernels.get("add_words"), kernels.get("sum_hashes")
    rows = int(starts[-1])
    if add_words is None or sum_hashes is None or (firsts is not None and max(firsts) + rows > _EXACT):
        return None
    lanes = np.zeros((LANES, rows), np.uint64)
    for name, tensor in tensors.items():
        if (memory := _memory(tensor)) is None:
            return None
        shape = tensor.shape[1:]
        entries = math.prod(shape)
        for begin in range(0, entries, COLUMNS):
            keys = _keys(name, shape, begin, min(begin + COLUMNS, entries))
            if not add_words(*memory, entries, begin, keys, lanes):
                return None
    names = tuple((name, tensor.shape[1:]) for name, tensor in tensors.items())
    seeds = _seeds_of(names if firsts is None else (*names, (IDENTITY, ())))
    sums = np.empty((len(starts) - 1, LANES), np.uint64)
    positions = _NONE if firsts is None else np.array(firsts, np.int64)
    sum_hashes(lanes, seeds, positions, _keys(IDENTITY, (), 0, 1)[:, 0].copy(), starts, sums)
    halves: list[list[int]] = sums.tolist()
    return halves


def _memory(tensor: Array) -> tuple[Array, Array, int] | None:
    """Return the integers, or the floats and their float32 words, as a kernel reads them; the other array is empty.

    None if float64 does not represent an integer of uint64, or if these are no numbers.
    """
    if tensor.dtype.kind not in "biuf":
        return None
    flat = np.ascontiguousarray(tensor).reshape(-1)
    if flat.dtype == np.uint64:
        if flat.size and int(flat.max()) >= _EXACT:
            return None
        flat = flat.view(np.int64)
    if flat.dtype == np.int64:
        return flat, _NO_FLOATS, 0
    if flat.dtype not in (np.float32, np.float64):
        flat = flat.astype(np.float64)
    return _NONE, flat.view(np.float32), flat.itemsize // 4


@memoized("fingerprint_all_seeds", lambda names, seeds: 1024 + 64 * len(names), 1 << 18)
def _seeds_of(names: tuple[tuple[str, tuple[int, ...]], ...]) -> Array:
    """Return the sum of the seeds of the tensors of rows, and the value of the weight of 1 if there is no weight: (2,).

    Args:
        names: The name of each tensor, and the shape of a row of it.
    """
    seeds = [_seeds(name, shape) for name, shape in names]
    if WEIGHT not in dict(names):
        seeds.append(_weight_of_one())
    found: Array = np.sum(seeds, 0)[:, 0].copy()
    return found


def _step(tensors: Iterable[Array]) -> int:
    """Return how many rows are hashed together."""
    entries = max([math.prod(tensor.shape[1:]) for tensor in tensors])
    return FEW_ROWS if entries == 1 else max(BLOCK // max(entries, 1), 1)


def _lanes(block: Mapping[str, Array], rows: int) -> Array:
    """Return the sum of the tensors' values in each lane, (2, rows) uint64; without weights, they are 1."""
    if (found := _lanes_of_numbers(block, rows)) is not None:
        return found
    lanes = np.zeros((LANES, rows), np.uint64)
    if WEIGHT not in block:
        lanes += _weight_of_one()
    for name, tensor in block.items():
        _add_value(lanes, name, tensor)
    return lanes


def _lanes_of_numbers(block: Mapping[str, Array], rows: int) -> Array | None:
    """Return what :func:`_lanes` does if rows are few and of single numbers that float64 represents, else None."""
    if rows > FEW_ROWS or any(tensor.ndim != 1 or tensor.dtype.kind not in "biuf" for tensor in block.values()):
        return None
    numbers = np.empty((len(block), rows))
    for row, tensor in zip(numbers, block.values(), strict=True):
        row[:] = tensor
    numbers += 0.0  # -0 + 0 is 0
    if not (numbers.min() > -_EXACT and numbers.max() < _EXACT):
        return None
    keys, seeds = _factors_of_numbers(tuple(block))
    lanes: Array = (_mix(numbers.view(np.uint64)) * keys).sum(1)
    lanes += seeds
    return lanes


@memoized("fingerprint_numbers", lambda names, found: 1024 + sum(map(len, names)), 1 << 18)
def _factors_of_numbers(names: tuple[str, ...]) -> tuple[Array, Array]:
    """Return the factors of T tensors of shape () a row, (2, T, 1), and the sum of their seeds, (2, 1)."""
    keys = np.stack([_keys(name, (), 0, 1) for name in names], 1)
    seeds = np.sum([_seeds(name, ()) for name in names], 0)
    return keys, seeds if WEIGHT in names else seeds + _weight_of_one()


@memoized("fingerprint_weight", lambda value: value.nbytes, 1 << 14)
def _weight_of_one() -> Array:
    value = np.zeros((LANES, 1), np.uint64)
    _add_value(value, WEIGHT, np.ones(1))
    return value


def _add_value(lanes: Array, name: str, tensor: Array) -> None:
    """Add a tensor's value to each lane."""
    shape = tensor.shape[1:]
    flat = tensor.reshape(len(tensor), math.prod(shape))
    for begin in range(0, flat.shape[1], COLUMNS):
        words = _words(flat[:, begin : begin + COLUMNS])
        for lane, keys in zip(lanes, _keys(name, shape, begin, begin + words.shape[1]), strict=True):
            lane += words[:, 0] * keys[0] if len(keys) == 1 else words @ keys
    lanes += _seeds(name, shape)


def _words(numbers: Array) -> Array:
    """Return the words of numbers, of the same shape."""
    if numbers.dtype.kind not in "biuf":
        raise TypeError(f"a fingerprint is made of bool, integers and floats, not of {numbers.dtype}")
    if numbers.dtype.itemsize == 1:  # 256 values: look them up
        return _words_of_byte(numbers.dtype.str)[numbers.view(np.uint8)]
    values = numbers.astype(np.float64)
    if numbers.dtype.kind == "f":
        values += 0.0  # -0 + 0 is 0
    bits = values.view(np.uint64)
    if numbers.dtype.kind == "f" and (nan := np.isnan(values)).any():
        bits[nan] = _NAN
    words = _mix(bits)
    if numbers.dtype.kind in "iu" and numbers.dtype.itemsize == 8 and numbers.size:
        least, most = int(numbers.min()), int(numbers.max())
        if least < -_EXACT or most > _EXACT:
            _replace_inexact(words, numbers)
    return words


@memoized("fingerprint_words", lambda dtype, words: words.nbytes, 1 << 18)
def _words_of_byte(dtype: str) -> Array:
    """Return the words of all values of a type of one byte, in the order of their bits."""
    return _words(np.arange(256, dtype=np.uint8).astype(bool if dtype == "|b1" else dtype).astype(np.int16))


def _replace_inexact(words: Array, numbers: Array) -> None:
    """Set the words of the integers that float64 cannot represent."""
    negative = numbers < 0
    size = numbers.astype(np.uint64)
    size = np.where(negative, ~size + np.uint64(1), size)
    rounded = size.astype(np.float64)
    inside = rounded < _WRAP
    inexact = ~inside | (np.where(inside, rounded, 0).astype(np.uint64) != size)
    words[inexact] = final(size[inexact]) + negative[inexact].astype(np.uint64)


@memoized("fingerprint_keys", lambda name, shape, begin, end, keys: 512 + 8 * len(shape) + keys.nbytes, 9 << 18)
def _keys(name: str, shape: tuple[int, ...], begin: int, end: int) -> Array:
    """Return the factors of entries ``begin`` to ``end`` in each lane, (2, end - begin) uint64, odd."""
    steps = np.arange(begin + 1, end + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return final(_seeds(name, shape) + steps) | np.uint64(1)


@memoized("fingerprint_seeds", lambda name, shape, seeds: 512 + 8 * len(shape) + len(name), 1 << 18)
def _seeds(name: str, shape: tuple[int, ...]) -> Array:
    """Return what each lane starts with for a tensor of that name and shape of a row, (2, 1) uint64."""
    encoded = name.encode()
    seeds = [_final_of_one(lane + 1) for lane in range(LANES)]
    for number in (len(encoded), *encoded, len(shape), *shape):
        seeds = [(_final_of_one(seed ^ number) + GOLDEN) % _WRAP for seed in seeds]
    return np.array([[seed] for seed in seeds], np.uint64)


def _final_of_one(number: int) -> int:
    return int(final(np.array([number], np.uint64))[0])


def _mix(numbers: Array) -> Array:
    """Mix the bits of uint64 in place."""
    numbers ^= numbers >> np.uint64(32)
    numbers *= np.uint64(GOLDEN)
    numbers ^= numbers >> np.uint64(29)
    return numbers


def final(numbers: Array) -> Array:
    """Mix the bits of uint64 in place, so that each bit depends on all."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(_FIRST)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(_SECOND)
    numbers ^= numbers >> np.uint64(31)
    return numbers
